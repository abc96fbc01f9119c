//! The composition root: builds every part from the configuration, starts the tasks and orders
//! the shutdown. The only room that knows all others.

mod ask;
mod bug_report;
mod check;
mod conntrack;
mod consistency;
mod control_socket;
mod dataplanes;
mod events;
mod inspect;
mod obstacles;
mod offline;
mod output;
mod pages;
mod print;
mod read_api;
mod readiness_taint;
mod reload;
mod render;
mod replace_file;
mod routes;
mod run;
mod servers;
mod services;
mod signals;
mod sole;
mod source;
mod status;
mod style;
mod supervisor;
mod tables_beside;
mod whole;

use crate::backend::{self, cleanup};
use crate::config::{
    self, Action, CommandLine, Config, ConfigFile, Effective, Host, LogFormat, LoggingConfig, ModeChoice,
    Resolved,
};
use crate::kernel::{memory, process};
use crate::telemetry;
use anyhow::{Context, Result};
use output::{Answer, complain};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Runs the program with these arguments, without the program's name.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    memory::keep_little();
    if let Err(error) = process::use_capabilities() {
        complain(format_args!("Warning: what this user may do is not put into effect: {error:#}"));
    }
    let line = match config::parse(arguments) {
        Ok(line) => line,
        Err(stop) if stop.exit_code == 0 => return Answer::from(stop.text).deliver(),
        Err(stop) => {
            complain(stop.text);
            return ExitCode::from(stop.exit_code);
        }
    };
    act(&line).unwrap_or_else(|error| {
        last_words(&line, &error);
        if line.action.is_question() { ExitCode::from(NOT_FOUND_OUT) } else { ExitCode::FAILURE }
    })
}

/// The exit status of a question that could not be answered: no proxy to ask, no permission, a bad argument.
const NOT_FOUND_OUT: u8 = 3;

/// Why the program ends. In a log of JSON lines, this is one, too.
fn last_words(line: &CommandLine, error: &anyhow::Error) {
    let in_json =
        telemetry::format().map_or(line.logs_json(), |format| format == telemetry::LineFormat::Json);
    if !in_json || line.action.is_question() {
        return complain(format_args!("Error: {error:#}"));
    }
    if telemetry::format().is_none() && telemetry::init(0, telemetry::LineFormat::Json).is_err() {
        return complain(format_args!("Error: {error:#}"));
    }
    tracing::error!(error = format!("{error:#}"), "the program ends");
}

fn act(line: &CommandLine) -> Result<ExitCode> {
    match &line.action {
        Action::PrintVersion(text) => return Ok(Answer::from(format!("{text}\n")).deliver()),
        Action::CheckConfig(file) => return Ok(check_config(line, file)?.deliver()),
        Action::Completion(shell) => return Ok(completion(*shell)?.deliver()),
        _ => {}
    }
    let Resolved { config, effective, notices, choice, names_mode } = resolve(line)?;
    // People who ask want the answer only.
    let asked = match &line.action {
        Action::Explain(asked) => block_on(ask::explain(&config, asked)),
        Action::Services(asked) => block_on(services::services(&config, asked)),
        Action::Status(form) => block_on(ask::status(&config, form)),
        Action::BugReport(path) => {
            block_on(bug_report::bug_report(&config, &effective, (path.as_deref(), run::clock()().wall)))
        }
        _ => {
            start_logging(line, config.logging, &notices)?;
            return act_with_log(line, config, (&effective, choice.as_ref(), names_mode));
        }
    };
    Ok(asked?.deliver())
}

fn act_with_log(
    line: &CommandLine,
    config: Config,
    (effective, choice, names_mode): (&Effective, Option<&ModeChoice>, bool),
) -> Result<ExitCode> {
    if let (Action::Run | Action::InitOnly, Some(ModeChoice { mode, reason })) = (&line.action, choice) {
        tracing::info!(mode = mode.as_str(), reason, "--proxy-mode=auto: this node's mode is chosen");
    }
    match &line.action {
        Action::Render(asked) => Ok(render::render(&config, asked)?.deliver()),
        Action::CheckNode(form) => Ok(block_on(check::check(&config, (choice, names_mode), form))?.deliver()),
        Action::WriteConfig(path) => {
            let text = effective.to_yaml().map_err(anyhow::Error::msg)?;
            replace_file::replace(path, &text)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::InitOnly => block_on(run::init_only(config)),
        Action::Cleanup => block_on(cleanup::everything(&config)).map(|()| ExitCode::SUCCESS),
        Action::Run => block_on(run::run(config, line.clone(), effective.clone())),
        // Answered without a log.
        Action::PrintVersion(_)
        | Action::CheckConfig(_)
        | Action::Completion(_)
        | Action::Explain(_)
        | Action::Services(_)
        | Action::Status(_)
        | Action::BugReport(_) => Ok(ExitCode::SUCCESS),
    }
}

fn start_logging(line: &CommandLine, logging: LoggingConfig, notices: &[String]) -> Result<()> {
    let format = match logging.format {
        LogFormat::Text => telemetry::LineFormat::Text,
        LogFormat::Json => telemetry::LineFormat::Json,
    };
    telemetry::init(logging.verbosity, format)?;
    for notice in notices {
        tracing::warn!("{notice}");
    }
    if logging.verbosity > 0 {
        for (name, value) in &line.values {
            tracing::info!("FLAG: --{name}={value:?}");
        }
    }
    Ok(())
}

fn resolve(line: &CommandLine) -> Result<Resolved> {
    let file = line.config_file().as_deref().map(read_config).transpose()?;
    resolve_file(line, file.as_ref())
}

fn resolve_file(line: &CommandLine, file: Option<&ConfigFile>) -> Result<Resolved> {
    let name = hostname()?;
    let choose_mode: Option<fn() -> ModeChoice> = match line.action {
        // Nothing depends on the machine where this runs.
        Action::Render(_) => None,
        _ => Some(backend::choose),
    };
    Ok(config::resolve(line, file, Host { name: &name, choose_mode })?)
}

fn read_config(path: &Path) -> Result<ConfigFile> {
    let content = std::fs::read(path)
        .with_context(|| format!("failed to read the configuration file {}", path.display()))?;
    Ok(ConfigFile { path: path.to_owned(), content })
}

fn hostname() -> Result<String> {
    let name = nix::unistd::gethostname().context("reading the host's name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// `kube-proxy-rs completion SHELL`.
fn completion(shell: clap_complete::Shell) -> Result<Answer> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut config::command(), "kube-proxy-rs", &mut script);
    Ok(String::from_utf8(script).context("the completion script is not text")?.into())
}

/// `kube-proxy-rs config check FILE`.
fn check_config(line: &CommandLine, file: &Path) -> Result<Answer> {
    let name = hostname()?;
    let host = Host { name: &name, choose_mode: Some(backend::choose) };
    let (settings, notices) = config::explain(line, &read_config(file)?, host)?;
    for notice in notices {
        complain(format_args!("Warning: {notice}"));
    }
    Ok(settings.into())
}

/// One thread does everything: the work is waiting for the API server, the kernel and its tools.
fn block_on<T>(task: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(task);
    runtime.shutdown_background();
    result
}
