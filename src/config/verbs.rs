//! The subcommands, with their own flags.

use super::command_line::{Action, version_text};
use super::values;
use crate::model::{IpFamily, Protocol};
use clap::{Args, Subcommand, ValueEnum};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

#[derive(Subcommand, Clone, Debug)]
pub(super) enum Verb {
    /// Prints the rules for the given manifests and touches nothing
    #[command(args_override_self = true)]
    Render(RenderFlags),
    /// Looks whether this node is fit for the configuration, and touches nothing; exits with 0 if it is, with 1 if it
    /// is not, and with 3 if that cannot be found out
    #[command(args_override_self = true)]
    Check(OutputFlags),
    /// Says why a Service works here or does not; exits with 0 if the kernel is as it should be, with 1 if it is not,
    /// with 2 if there is no such Service, and with 3 if that cannot be found out
    #[command(args_override_self = true)]
    Explain(ExplainFlags),
    /// Lists Services with their addresses and endpoints; exits with 1 if there are --problems, with 2 if there is no
    /// Service of a given name, and with 3 if that cannot be found out
    #[command(args_override_self = true)]
    Services(ServicesFlags),
    /// Says how the proxy on this node is doing; exits with 0 if it is healthy, with 1 if it is degraded, and with 3 if
    /// it cannot be asked
    #[command(args_override_self = true)]
    Status(OutputFlags),
    /// Writes versions, configuration, status, rules, metrics and more to one archive, for a bug report; exits with 3 if
    /// it cannot be written
    #[command(args_override_self = true)]
    BugReport {
        /// The archive to make; without it, kube-proxy-rs-NODE-TIME.tar.gz in this folder
        file: Option<PathBuf>,
    },
    /// Looks at configuration files
    #[command(args_override_self = true, subcommand_required = true)]
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
    /// Prints the version
    Version,
    /// Prints what a shell needs to complete arguments; for bash: source <(kube-proxy-rs completion bash)
    Completion {
        /// The shell
        #[arg(value_parser = shell, value_name = "bash|zsh|fish")]
        shell: clap_complete::Shell,
    },
}

#[derive(Subcommand, Clone, Debug)]
pub(super) enum ConfigVerb {
    /// Checks a file and prints every setting with where it comes from
    Check {
        /// The file
        file: PathBuf,
    },
}

#[derive(Args, Clone, Debug)]
pub(super) struct RenderFlags {
    /// IP family to print the rules of
    #[arg(long, value_name = "FAMILY", default_value = "ipv4", value_enum)]
    family: FamilyFlag,
    /// The node's addresses, where its Node object does not say them or others count
    #[arg(long, value_name = "IP,…", value_delimiter = ',')]
    node_addresses: Vec<IpAddr>,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ExplainFlags {
    /// The Service, as NAMESPACE/NAME or NAMESPACE/NAME:PORT; as NAME or service/NAME with --namespace; or an address
    /// that a client uses, as IP:PORT or IP:PORT/PROTOCOL
    #[arg(required_unless_present = "all")]
    target: Option<String>,
    /// Every difference between what the proxy wants and what the kernel has, and what is wrong with any Service
    #[arg(long, conflicts_with_all = ["target", "client", "to"])]
    all: bool,
    /// The namespace of a Service that is given by its name alone
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    /// Trace a packet of this client
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// Trace a packet sent there; without it, one to the first cluster IP
    #[arg(long, value_name = "IP:PORT")]
    to: Option<SocketAddr>,
    /// The protocol of the traced packet; without it, each that the Service has at its destination
    #[arg(long, value_name = "tcp|udp|sctp", default_value = "", hide_default_value = true, value_parser = protocol)]
    protocol: String,
    /// The interface that the traced packet comes in on, where rules depend on that
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    interface: String,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Args, Clone, Debug)]
pub(super) struct ServicesFlags {
    /// Only these Services, as NAMESPACE/NAME; as NAME or service/NAME with --namespace
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only Services of this namespace; without it, of all
    #[arg(long, short, value_name = "NAMESPACE", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Services of all namespaces, as without --namespace
    #[arg(long, short = 'A')]
    all_namespaces: bool,
    /// Only Services with these labels, as in app=web,tier!=test; the API server is asked for them
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    selector: String,
    /// Go on and print a Service again when it changes
    #[arg(long, short)]
    watch: bool,
    /// Only Services that have a problem, with what it is
    #[arg(long)]
    problems: bool,
    /// Leave the line with the names of the columns out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    output: OutputFlags,
}

#[derive(Args, Clone, Debug)]
pub(super) struct OutputFlags {
    /// Form of what is printed
    #[arg(
        long,
        short,
        value_name = "text|wide|json|yaml|name|jsonpath=TEMPLATE",
        default_value = "text",
        value_parser = form
    )]
    output: Form,
}

/// Form of what a command prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// For people.
    #[default]
    Text,
    /// For people with wide screens.
    Wide,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
    /// The names of the objects, as other commands take them.
    Name,
    /// What this template makes of the JSON, as with kubectl.
    JsonPath(String),
}

fn form(text: &str) -> Result<Form, String> {
    match text {
        "text" => Ok(Form::Text),
        "wide" => Ok(Form::Wide),
        "json" => Ok(Form::Json),
        "yaml" => Ok(Form::Yaml),
        "name" => Ok(Form::Name),
        text => match text.strip_prefix("jsonpath=") {
            Some(template) => Ok(Form::JsonPath(template.to_owned())),
            None => Err("there are text, wide, json, yaml, name and jsonpath=TEMPLATE".to_owned()),
        },
    }
}

fn protocol(text: &str) -> Result<String, String> {
    let name = text.to_ascii_lowercase();
    match name.is_empty() || Protocol::ALL.iter().any(|protocol| protocol.as_str() == name) {
        true => Ok(name),
        false => Err("there are tcp, udp and sctp".to_owned()),
    }
}

fn shell(text: &str) -> Result<clap_complete::Shell, String> {
    use clap_complete::Shell::{Bash, Fish, Zsh};
    let known = [("bash", Bash), ("zsh", Zsh), ("fish", Fish)];
    let found = known.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, shell)| shell).ok_or_else(|| "there are bash, zsh and fish".to_owned())
}

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Service.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Only this port, by name or number.
        port: Option<String>,
    },
    /// Whatever answers at an address.
    Address(SocketAddr, Option<Protocol>),
}

impl Target {
    /// Reads how people name a Service or an address. A name alone is in this namespace.
    ///
    /// # Errors
    /// In one sentence, with the forms that there are.
    pub fn parse(text: &str, namespace: &str) -> Result<Target, String> {
        let (address, protocol) = match text.rsplit_once('/') {
            Some((address, name)) => {
                let named = |protocol: &Protocol| protocol.as_str().eq_ignore_ascii_case(name);
                (address, Protocol::ALL.into_iter().find(named))
            }
            None => (text, None),
        };
        let (address, protocol) = if protocol.is_some() { (address, protocol) } else { (text, None) };
        if let Ok(address) = address.parse() {
            return Ok(Target::Address(address, protocol));
        }
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => (service, Some(port.to_owned())),
            None => (text, None),
        };
        let parts: Vec<&str> = service.split('/').collect();
        let is_kind = |word: &str| ["service", "services", "svc"].contains(&word);
        let (namespace, name) = match parts.as_slice() {
            [name] => (namespace, *name),
            [kind, name] if is_kind(kind) => (namespace, *name),
            [namespace, name] => (*namespace, *name),
            [kind, namespace, name] if is_kind(kind) => (*namespace, *name),
            _ => ("", ""),
        };
        if namespace.is_empty() || name.is_empty() || port.as_deref() == Some("") {
            return Err(format!(
                "{text:?} names no Service and no address: NAMESPACE/NAME, NAMESPACE/NAME:PORT, NAME with --namespace, \
                 IP:PORT and IP:PORT/PROTOCOL do"
            ));
        }
        Ok(Target::Service { namespace: namespace.to_owned(), name: name.to_owned(), port })
    }
}

/// What is asked about a Service, or about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explain {
    /// The Service or address, as it was given; `None` for the whole node.
    pub target: Option<String>,
    /// The namespace of a Service that is given by its name alone.
    pub namespace: String,
    /// Trace a packet of this client.
    pub client: Option<IpAddr>,
    /// Trace a packet sent there.
    pub to: Option<SocketAddr>,
    /// The protocol of the traced packet.
    pub protocol: Option<Protocol>,
    /// The interface that the traced packet comes in on.
    pub interface: Option<String>,
    /// How to print the answer.
    pub form: Form,
}

/// Which Services are listed, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListServices {
    /// Only these, as they were given; empty for all.
    pub names: Vec<String>,
    /// Only of this namespace.
    pub namespace: Option<String>,
    /// Only those with these labels.
    pub selector: Option<String>,
    /// Print a Service again when it changes.
    pub watch: bool,
    /// Only those with a problem.
    pub problems: bool,
    /// Without the line of column names.
    pub no_headers: bool,
    /// How to print them.
    pub form: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FamilyFlag {
    Ipv4,
    Ipv6,
}

/// What `render` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Render {
    /// Whose rules.
    pub family: IpFamily,
    /// The node's addresses; without any, its Node object says them.
    pub node_addresses: Vec<IpAddr>,
}

impl Verb {
    /// What is to be done.
    pub(super) fn action(&self) -> Action {
        match self {
            Verb::Render(flags) => {
                let family = match flags.family {
                    FamilyFlag::Ipv4 => IpFamily::V4,
                    FamilyFlag::Ipv6 => IpFamily::V6,
                };
                Action::Render(Render { family, node_addresses: flags.node_addresses.clone() })
            }
            Verb::Check(flags) => Action::CheckNode(flags.output.clone()),
            Verb::Explain(flags) => Action::Explain(flags.ask()),
            Verb::Services(flags) => Action::Services(flags.ask()),
            Verb::Status(flags) => Action::Status(flags.output.clone()),
            Verb::BugReport { file } => Action::BugReport(file.clone()),
            Verb::Config { verb: ConfigVerb::Check { file } } => Action::CheckConfig(file.clone()),
            Verb::Version => Action::PrintVersion(version_text("true").unwrap_or_default()),
            Verb::Completion { shell } => Action::Completion(*shell),
        }
    }
}

impl ExplainFlags {
    fn ask(&self) -> Explain {
        Explain {
            target: self.target.clone().filter(|_| !self.all),
            namespace: self.namespace.clone(),
            client: self.client,
            to: self.to,
            protocol: Protocol::ALL.into_iter().find(|protocol| protocol.as_str() == self.protocol),
            interface: values::non_empty(&self.interface).map(str::to_owned),
            form: self.output.output.clone(),
        }
    }
}

impl ServicesFlags {
    fn ask(&self) -> ListServices {
        let given = |text: &str| values::non_empty(text).map(str::to_owned);
        ListServices {
            names: self.names.clone(),
            namespace: given(&self.namespace).filter(|_| !self.all_namespaces),
            selector: given(&self.selector),
            watch: self.watch,
            problems: self.problems,
            no_headers: self.no_headers,
            form: self.output.output.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn service(namespace: &str, name: &str, port: Option<&str>) -> Target {
        Target::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port: port.map(str::to_owned),
        }
    }

    #[rstest]
    #[case("web", service("here", "web", None))]
    #[case("web:http", service("here", "web", Some("http")))]
    #[case("svc/web", service("here", "web", None))]
    #[case("shop/web", service("shop", "web", None))]
    #[case("shop/web:80", service("shop", "web", Some("80")))]
    #[case("service/shop/web", service("shop", "web", None))]
    #[case("a/b&name=c", service("a", "b&name=c", None))]
    #[case("10.96.0.10:80", Target::Address("10.96.0.10:80".parse().unwrap(), None))]
    #[case("192.0.2.7:30080/udp", Target::Address("192.0.2.7:30080".parse().unwrap(), Some(Protocol::Udp)))]
    #[case("[fd00::1]:53/TCP", Target::Address("[fd00::1]:53".parse().unwrap(), Some(Protocol::Tcp)))]
    fn services_and_addresses_are_named_as_people_name_them(#[case] text: &str, #[case] wanted: Target) {
        assert_eq!(Target::parse(text, "here"), Ok(wanted));
    }

    #[rstest]
    #[case("")]
    #[case("a/b/c")]
    #[case("/web")]
    #[case("shop/")]
    #[case("shop/web:")]
    #[case("svc/a/b/c")]
    fn what_names_nothing_is_refused_with_the_forms_that_there_are(#[case] text: &str) {
        let error = Target::parse(text, "here").unwrap_err();
        assert!(error.contains("NAMESPACE/NAME") && error.contains("IP:PORT"), "{error}");
    }
}
