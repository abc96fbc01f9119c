//! The command line as a whole: what to do, and the flags with Go's manners.

use super::build::{self, BUILD};
use super::flags::Flags;
use super::verbs::{Explain, Form, ListServices, Render, Verb};
use super::{number, values};
use crate::model::Build;
use clap::builder::ValueParser;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, CommandFactory, FromArgMatches, Parser};
use std::any::TypeId;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

/// The flags that still count when `--config` is given: those that no configuration field stands
/// for, and those that upstream lets win over the file.
const EFFECTIVE_WITH_CONFIG: &[&str] = &[
    "config",
    "write-config-to",
    "cleanup",
    "init-only",
    "master",
    "hostname-override",
    "version",
    "v",
    "vmodule",
    "logging-format",
    "log-flush-frequency",
    "log-text-split-stream",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-json-info-buffer-size",
    "machine-id-file",
    "boot-id-file",
    "manifests",
    "iptables-flavor",
    "cleanup-other-flavor",
    "drift-detection",
    "ipvs-upstream-compat",
    "ipvs-connection-metrics",
    "service-metrics",
    "service-metrics-limit",
    "conntrack-strict",
    "iptables-dispatch-tree-threshold",
    "nftables-own-table",
    "service-node-port-range",
    "service-cluster-ip-range",
    "node-ip-range",
    "strict-external-ips",
    "max-service-endpoints",
    "max-service-ports",
    "max-service-external-ips",
    "max-service-source-ranges",
    "max-service-rules",
    "node-readiness-taint",
    "family",
    "node-addresses",
    "control-socket",
    "client",
    "to",
    "interface",
    "namespace",
    "all",
    "all-namespaces",
    "selector",
    "watch",
    "problems",
    "no-headers",
    "protocol",
    "output",
];

#[derive(Parser, Clone, Debug)]
#[command(
    name = "kube-proxy-rs",
    about = "Programs this node's kernel with the cluster's Services",
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    infer_long_args = false,
    no_binary_name = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Verb>,
    #[command(flatten)]
    flags: Flags,
}

/// What one invocation is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Be a service proxy.
    Run,
    /// Print this text and exit.
    PrintVersion(String),
    /// Write the effective configuration to this file and exit.
    WriteConfig(PathBuf),
    /// Remove the rules of all modes and exit.
    Cleanup,
    /// Do the privileged part of the start and exit.
    InitOnly,
    /// Check this configuration file, print what is in effect with it, and exit.
    CheckConfig(PathBuf),
    /// Print whether this node is fit and exit.
    CheckNode(Form),
    /// Print the rules of one family and exit.
    Render(Render),
    /// Say why a Service works or does not.
    Explain(Explain),
    /// List Services.
    Services(ListServices),
    /// Say how the proxy on this node is doing.
    Status(Form),
    /// Write all that is known of the proxy of this node to an archive.
    BugReport(Option<PathBuf>),
    /// Print what a shell needs to complete this program's arguments.
    Completion(clap_complete::Shell),
}

impl Action {
    /// It only finds something out, for the one who asks.
    #[must_use]
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Action::CheckNode(_)
                | Action::Explain(_)
                | Action::Services(_)
                | Action::Status(_)
                | Action::BugReport(_)
        )
    }
}

/// A parsed command line.
#[derive(Clone, Debug)]
pub struct CommandLine {
    /// All flags, defaults filled in.
    pub flags: Flags,
    /// What to do.
    pub action: Action,
    /// Every flag with its value, for people.
    pub values: Vec<(String, String)>,
    given: BTreeSet<String>,
}

/// Why there is nothing to run: a mistake on the command line, or a request for help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagStop {
    /// What to print: on stdout with exit code 0, on stderr otherwise.
    pub text: String,
    /// The exit code.
    pub exit_code: u8,
}

impl CommandLine {
    /// The flag stood on the command line; `name` is its long name.
    #[must_use]
    pub fn gave(&self, name: &str) -> bool {
        self.given.contains(name)
    }

    /// `--logging-format` asks for JSON.
    #[must_use]
    pub fn logs_json(&self) -> bool {
        self.flags.logging.logging_format == "json"
    }

    /// The configuration file to load, if any.
    #[must_use]
    pub fn config_file(&self) -> Option<PathBuf> {
        values::non_empty(&self.flags.general.config).map(PathBuf::from)
    }

    /// The flags that were given in vain, because `--config` takes their place.
    pub(super) fn overruled_by_file(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(String::as_str).filter(|name| !EFFECTIVE_WITH_CONFIG.contains(name))
    }
}

/// Parses a command line, without the program's name.
///
/// # Errors
/// When there is nothing to run: bad flags, or `--help`.
pub fn parse<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> Result<CommandLine, FlagStop> {
    let mut command = command();
    let args = args.into_iter().map(Into::into).enumerate().map(text).collect::<Result<Vec<_>, _>>()?;
    let args = as_go_reads_them(args, &command);
    let asks = args.iter().any(|arg| QUESTIONS.contains(&arg.as_str()));
    let matches = command.try_get_matches_from_mut(args).map_err(|error| stop(&error, asks))?;
    let given = command
        .get_arguments()
        .map(|arg| arg.get_id().as_str())
        .filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine))
        .map(|id| id.replace('_', "-"))
        .collect();
    let raw = |id: &str| {
        let values = matches.get_raw(id).into_iter().flatten();
        values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
    };
    let values = command
        .get_arguments()
        .filter_map(|arg| Some((arg.get_long()?.to_owned(), raw(arg.get_id().as_str()))))
        .filter(|(name, _)| name != "help")
        .collect();
    let cli = Cli::from_arg_matches(&matches).map_err(|error| stop(&error, asks))?;
    let action = action_of(&cli);
    Ok(CommandLine { flags: cli.flags, action, values, given })
}

/// One flag, for the documentation test and for tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagRow {
    /// Long name without dashes.
    pub name: String,
    /// Default as printed in the help; empty for none.
    pub default: String,
    /// Still counts when `--config` is given.
    pub effective_with_config: bool,
}

/// All flags, in the order of the help.
#[must_use]
pub fn flag_rows() -> Vec<FlagRow> {
    let mut command = command();
    command.build();
    let own = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let mut rows: Vec<FlagRow> = Vec::new();
    for arg in command.get_arguments().chain(own) {
        let Some(name) = arg.get_long().filter(|name| *name != "help") else { continue };
        if rows.iter().any(|row| row.name == name) {
            continue;
        }
        let default: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        rows.push(FlagRow {
            name: name.to_owned(),
            default: default.join(","),
            effective_with_config: EFFECTIVE_WITH_CONFIG.contains(&name),
        });
    }
    rows
}

/// The whole command line, as `--help` and the manual page describe it.
#[must_use]
pub fn command() -> clap::Command {
    let command = Cli::command().mut_args(as_pflag);
    let names: Vec<String> = command.get_subcommands().map(|verb| verb.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| command.mut_subcommand(name, with_own_help))
}

/// Has the help of a subcommand show its own flags, and name those of the proxy that count for it: the rest would be
/// 150 lines.
fn with_own_help(verb: clap::Command) -> clap::Command {
    const OTHERS: &str = "\
Where the answer comes from (--help without a command describes these and all other flags):
      --control-socket <PATH>   the proxy of this node, which is the default
      --kubeconfig <FILE>, --master <URL>   the API server, without a proxy
      --manifests <PATH,…>      files, without a proxy; - is stdin
      --config <FILE>, --mode <MODE>, --hostname-override <NAME>   what the proxy would be run with";
    let name = format!("kube-proxy-rs {}", verb.get_name());
    let text = verb.clone().bin_name(name).after_help(OTHERS).render_help().to_string();
    verb.override_help(text)
}

/// Gives a flag the manners of Go's: booleans take `=true`, numbers are read as Go reads them and may be
/// negative, and every flag may stand after the subcommand too.
fn as_pflag(arg: Arg) -> Arg {
    let arg = arg.global(true);
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        let arg = if arg.get_default_values().is_empty() { arg.default_value("false") } else { arg };
        return arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("true|false")
            .value_parser(ValueParser::from(values::boolean));
    }
    let arg = if arg.is_require_equals_set() { arg } else { arg.allow_hyphen_values(true) };
    let arg = with_number_parser(arg);
    if arg.get_value_delimiter().is_some() { arg.action(ArgAction::Append) } else { arg }
}

/// Exchanges the library's parsers of numbers.
fn with_number_parser(arg: Arg) -> Arg {
    let kind = arg.get_value_parser().type_id();
    if kind == TypeId::of::<i32>() {
        arg.value_parser(number::int32)
    } else if kind == TypeId::of::<u32>() {
        arg.value_parser(number::uint32)
    } else if kind == TypeId::of::<f32>() {
        arg.value_parser(number::float32)
    } else {
        arg
    }
}

/// An argument as text.
fn text((index, arg): (usize, OsString)) -> Result<String, FlagStop> {
    arg.into_string().map_err(|arg| FlagStop {
        text: format!("Error: argument {} is not text in UTF-8: {arg:?}\n", index + 1),
        exit_code: 1,
    })
}

/// Underscores in flag names are dashes, and empty arguments mean nothing, as templates leave them
/// behind. The value of a flag that stands by itself is left alone.
fn as_go_reads_them(args: Vec<String>, command: &clap::Command) -> Vec<String> {
    let mut read = Vec::with_capacity(args.len());
    let mut is_value = false;
    for arg in args {
        if is_value {
            is_value = false;
            read.push(arg);
        } else if !arg.is_empty() {
            let arg = dashed(arg);
            is_value = takes_next(&arg, command);
            read.push(arg);
        }
    }
    read
}

/// Whether the next argument is the value of this one.
fn takes_next(arg: &str, command: &clap::Command) -> bool {
    let own = command.get_subcommands().flat_map(clap::Command::get_arguments);
    let is_named = |flag: &&Arg| match arg.strip_prefix("--") {
        Some(long) => flag.get_long_and_visible_aliases().is_some_and(|names| names.contains(&long)),
        None => flag.get_short().is_some_and(|short| arg == format!("-{short}")),
    };
    let flag = command.get_arguments().chain(own).find(is_named);
    flag.is_some_and(|flag| flag.get_action().takes_values() && !flag.is_require_equals_set())
}

/// An argument with dashes in the name of its flag.
fn dashed(arg: String) -> String {
    if !arg.starts_with("--") {
        return arg;
    }
    match arg.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")),
        None => arg.replace('_', "-"),
    }
}

/// The commands that find something out. One that cannot ends with 3, so that 1 always is an answer.
const QUESTIONS: [&str; 5] = ["bug-report", "check", "explain", "services", "status"];

/// What is said where `explain` is not told what to explain.
const NO_TARGET: &str = "Error: explain what? kube-proxy-rs explain NAMESPACE/NAME (a Service), IP:PORT (whatever answers there) or \
    --all (this node); --client IP --to IP:PORT beside a Service trace a packet. See kube-proxy-rs explain --help\n";

fn stop(error: &clap::Error, asks: bool) -> FlagStop {
    let text = error.render().to_string();
    if !error.use_stderr() {
        return FlagStop { text, exit_code: 0 };
    }
    let text = text.strip_prefix("error: ").map_or_else(|| text.clone(), |rest| format!("Error: {rest}"));
    let text = if text.contains("Usage: explain <TARGET>") { NO_TARGET.to_owned() } else { text };
    FlagStop { text, exit_code: if asks { 3 } else { 1 } }
}

/// The order is upstream's: the version first, then writing, cleaning up and initialising.
fn action_of(cli: &Cli) -> Action {
    let general = &cli.flags.general;
    if let Some(text) = version_text(&general.version) {
        return Action::PrintVersion(text);
    }
    if let Some(verb) = &cli.command {
        return verb.action();
    }
    if let Some(path) = values::non_empty(&general.write_config_to) {
        return Action::WriteConfig(PathBuf::from(path));
    }
    match (general.cleanup, general.init_only) {
        (true, _) => Action::Cleanup,
        (false, true) => Action::InitOnly,
        (false, false) => Action::Run,
    }
}

pub(super) fn version_text(flag: &str) -> Option<String> {
    match flag {
        "false" => None,
        "true" => {
            let Build { version, compatible_with, .. } = BUILD;
            Some(format!("kube-proxy-rs v{version} (compatible with Kubernetes v{compatible_with})"))
        }
        "raw" => Some(build::raw()),
        claimed => Some(format!("Kubernetes {claimed}")),
    }
}
