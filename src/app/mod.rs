//! The composition root: builds every part from the configuration, starts the tasks and orders
//! the shutdown. The only room that knows all others.

mod ask;
mod check;
mod cleanup;
mod conntrack;
mod consistency;
mod control;
mod events;
mod families;
mod ipvs_metrics;
mod look;
mod offline;
mod readiness_taint;
mod reload;
mod render;
mod run;
mod servers;
mod service_metrics;
mod source;
mod status;

use crate::config::{self, Action, CommandLine, ConfigFile, LogFormat, Resolved};
use crate::kernel::memory;
use crate::telemetry;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::ExitCode;

/// Runs the program with these arguments, without the program's name.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    memory::keep_little();
    let line = match config::parse(arguments) {
        Ok(line) => line,
        Err(stop) if stop.exit_code == 0 => return print(&stop.text),
        Err(stop) => {
            eprintln!("{}", stop.text);
            return ExitCode::from(stop.exit_code);
        }
    };
    match act(&line) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints a text; a reader that went away is none of our business.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    let _ = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn act(line: &CommandLine) -> Result<ExitCode> {
    if let Action::PrintVersion(text) = &line.action {
        return Ok(print(&format!("{text}\n")));
    }
    if let Action::CheckConfig(file) = &line.action {
        return check_config(line, file);
    }
    let resolved = resolve(line)?;
    let logging = resolved.config.logging;
    let format = match logging.format {
        LogFormat::Text => telemetry::LineFormat::Text,
        LogFormat::Json => telemetry::LineFormat::Json,
    };
    let Resolved { config, effective, notices } = resolved;
    // People who ask want the answer only.
    match &line.action {
        Action::Explain(asked) => return block_on(ask::explain(&config, asked)),
        Action::Services(namespace, format) => {
            return block_on(ask::services(&config, namespace.as_deref(), *format));
        }
        Action::Status(format) => return block_on(ask::status(&config, *format)),
        _ => {}
    }
    telemetry::init(logging.verbosity, format)?;
    for notice in &notices {
        tracing::warn!("{notice}");
    }
    if logging.verbosity > 0 {
        for (name, value) in &line.values {
            tracing::info!("FLAG: --{name}={value:?}");
        }
    }
    match &line.action {
        Action::PrintVersion(_)
        | Action::CheckConfig(_)
        | Action::Explain(_)
        | Action::Services(..)
        | Action::Status(_) => Ok(ExitCode::SUCCESS),
        Action::Render(family) => render::render(&config, *family).map(|text| print(&text)),
        Action::WriteConfig(path) => {
            let text = effective.to_yaml().map_err(anyhow::Error::msg)?;
            std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Run => block_on(run::run(config, line.clone(), effective)),
        Action::InitOnly => block_on(run::init_only(config)),
        Action::CheckNode(form) => block_on(async move { check::check(&config, *form).await }),
        Action::Cleanup => block_on(async move { cleanup::everything(&config).await }),
    }
}

fn resolve(line: &CommandLine) -> Result<Resolved> {
    let file = line.config_file().as_deref().map(read_config).transpose()?;
    resolve_file(line, file.as_ref())
}

fn resolve_file(line: &CommandLine, file: Option<&ConfigFile>) -> Result<Resolved> {
    Ok(config::resolve(line, file, &hostname()?)?)
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

/// `kube-proxy-rs config check FILE`.
fn check_config(line: &CommandLine, file: &Path) -> Result<ExitCode> {
    let (settings, notices) = config::explain(line, &read_config(file)?, &hostname()?)?;
    for notice in notices {
        eprintln!("Warning: {notice}");
    }
    Ok(print(&settings))
}

/// One thread does everything: the work is waiting for the API server, the kernel and its tools.
fn block_on(task: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("starting the runtime")?;
    let result = runtime.block_on(task);
    runtime.shutdown_background();
    result
}
