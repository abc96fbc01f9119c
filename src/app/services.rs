//! `services`: a list of Services, as people know it from kubectl.

use super::ask::{NO_SUCH_SERVICE, Source, similar};
use super::output::{Answer, complain};
use super::print::structured;
use super::read_api::{FIRST_ANSWER, client_options};
use crate::config::{Config, Form, ListServices, Target};
use crate::explain::{Columns, Row, problem_table, table};
use crate::watch::client::Connection;
use crate::watch::lookup;
use anyhow::{Context, Error, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::Duration;

/// How often `--watch` looks.
const PERIOD: Duration = Duration::from_secs(1);
/// The exit status where there are problems, and they were asked for.
const PROBLEMS: u8 = 1;

/// `services`.
pub(super) async fn services(config: &Config, asked: &ListServices) -> Result<Answer> {
    if asked.watch && !matches!(asked.form, Form::Text | Form::Wide | Form::Name) {
        bail!("--watch prints lines: take --output text, wide or name with it");
    }
    let source = Source::of(config).await?;
    if asked.watch && matches!(source, Source::Offline(_)) {
        bail!("--watch asks the proxy that runs here: leave --kubeconfig, --master and --manifests out");
    }
    let selected = match &asked.selector {
        Some(selector) => Some(with_labels(config, selector).await?),
        None => None,
    };
    let names = asked.names.iter().map(|name| full_name(name, asked)).collect::<Result<Vec<_>>>()?;
    let wanted = Wanted { names, selected, asked };
    let all = source.rows(asked.namespace.as_deref()).await?;
    let rows = wanted.of(&all);
    if asked.watch {
        return watch(&source, &wanted, rows).await;
    }
    let missing = wanted.missing(&all);
    missing.iter().for_each(|complaint| complain(format_args!("Error: {complaint}")));
    let nothing_found = rows.is_empty() && missing.is_empty();
    if nothing_found && matches!(asked.form, Form::Text | Form::Wide | Form::Name) {
        complain(wanted.nothing());
    }
    let status = match (missing.is_empty(), asked.problems && !rows.is_empty()) {
        (false, _) => NO_SUCH_SERVICE,
        (true, true) => PROBLEMS,
        (true, false) => 0,
    };
    let text = match structured("ServiceList", &rows, &asked.form)? {
        Some(text) => text,
        None if rows.is_empty() => String::new(),
        None => lines(&rows, asked, !asked.no_headers),
    };
    Ok(Answer { text, status, wraps: false })
}

/// What to list.
struct Wanted<'a> {
    /// Only these; empty for all.
    names: Vec<String>,
    /// Only these, if labels were asked for.
    selected: Option<BTreeSet<String>>,
    asked: &'a ListServices,
}

impl Wanted<'_> {
    fn of(&self, rows: &[Row]) -> Vec<Row> {
        let is_named = |row: &Row| self.names.is_empty() || self.names.contains(&row.full_name());
        let is_selected = |row: &Row| self.selected.as_ref().is_none_or(|it| it.contains(&row.full_name()));
        let has_problem = |row: &Row| !self.asked.problems || !row.problems.is_empty();
        let wanted = rows.iter().filter(|row| is_named(row) && is_selected(row) && has_problem(row));
        wanted.cloned().collect()
    }

    /// What was named and is not there.
    fn missing(&self, rows: &[Row]) -> Vec<String> {
        let is_known = |name: &&String| rows.iter().any(|row| row.full_name() == **name);
        let complaint = |name: &String| {
            let (namespace, short) = name.split_once('/').unwrap_or(("", name));
            match similar(rows, namespace, short).as_slice() {
                [] => format!("there is no Service {name} with a cluster IP"),
                near => format!(
                    "there is no Service {name} with a cluster IP; did you mean {}?",
                    near.join(" or ")
                ),
            }
        };
        self.names.iter().filter(|name| !is_known(name)).map(complaint).collect()
    }

    /// That there is nothing, in kubectl's words.
    fn nothing(&self) -> String {
        let what = if self.asked.problems { "No problems found" } else { "No resources found" };
        let kernel =
            if self.asked.problems { " The kernel is not read: explain --all reads it." } else { "" };
        match &self.asked.namespace {
            Some(namespace) => format!("{what} in {namespace} namespace.{kernel}"),
            None => format!("{what}.{kernel}"),
        }
    }
}

fn full_name(given: &str, asked: &ListServices) -> Result<String> {
    let namespace = asked.namespace.as_deref().unwrap_or("default");
    match Target::parse(given, namespace).map_err(Error::msg)? {
        Target::Service { namespace, name, port: None } => Ok(format!("{namespace}/{name}")),
        Target::Service { .. } | Target::Address(..) => {
            bail!("{given:?} is not the name of a Service; explain takes ports and addresses")
        }
    }
}

fn lines(rows: &[Row], asked: &ListServices, headers: bool) -> String {
    match (&asked.form, asked.problems) {
        (Form::Name, _) => rows.iter().map(|row| format!("service/{}\n", row.full_name())).collect(),
        (_, true) => problem_table(rows, headers),
        (form, false) => table(rows, Columns { wide: form == &Form::Wide, headers }),
    }
}

/// Prints all, and then each Service that has changed, until the reader goes or a signal ends the program.
async fn watch(source: &Source<'_>, wanted: &Wanted<'_>, first: Vec<Row>) -> Result<Answer> {
    let (mut rows, mut headers) = (first, !wanted.asked.no_headers);
    let mut known: BTreeMap<String, Row> = BTreeMap::new();
    loop {
        let changed: Vec<Row> =
            rows.iter().filter(|row| known.get(&row.full_name()) != Some(*row)).cloned().collect();
        if !changed.is_empty() {
            let text = lines(&changed, wanted.asked, headers);
            match Answer::from(text).write() {
                Ok(()) => headers = false,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(Answer::default()),
                Err(error) => return Err(error).context("writing the answer to stdout"),
            }
        }
        known = rows.into_iter().map(|row| (row.full_name(), row)).collect();
        tokio::time::sleep(PERIOD).await;
        rows = wanted.of(&source.rows(wanted.asked.namespace.as_deref()).await?);
    }
}

/// The Services with these labels. The proxy does not keep labels, so the API server is asked.
async fn with_labels(config: &Config, selector: &str) -> Result<BTreeSet<String>> {
    let has_api = config.sources.kubeconfig.is_some()
        || config.sources.master.is_some()
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    if !has_api || !config.sources.manifests.is_empty() {
        bail!("--selector needs an API server, because the proxy keeps no labels: give --kubeconfig");
    }
    let connection = Connection::open(&client_options(config)).await?;
    let named = tokio::time::timeout(FIRST_ANSWER, lookup::labelled(&connection, selector)).await;
    named.with_context(|| format!("no answer from {} within {FIRST_ANSWER:?}", connection.url()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(namespace: &str, name: &str) -> Row {
        serde_json::from_value(serde_json::json!({
            "namespace": namespace, "name": name, "frontends": [], "used": 0, "unused": 0, "reasons": {},
            "draining": 0, "state": "serving",
        }))
        .unwrap()
    }

    fn asked(namespace: Option<&str>) -> ListServices {
        ListServices {
            names: Vec::new(),
            namespace: namespace.map(str::to_owned),
            selector: None,
            watch: false,
            problems: false,
            no_headers: false,
            form: Form::Text,
        }
    }

    #[test]
    fn names_and_labels_choose_and_what_is_missing_is_named_with_what_is_like_it() {
        let rows = [row("shop", "web"), row("shop", "db"), row("test", "web")];
        let asked = asked(Some("shop"));
        let names = ["web", "svc/test/web", "bd"].map(|name| full_name(name, &asked).unwrap());
        let wanted = Wanted { names: names.to_vec(), selected: None, asked: &asked };
        let found: Vec<String> = wanted.of(&rows).iter().map(Row::full_name).collect();
        assert_eq!(found, ["shop/web", "test/web"]);
        assert_eq!(
            wanted.missing(&rows),
            ["there is no Service shop/bd with a cluster IP; did you mean shop/db?"]
        );
        let selected = Some(BTreeSet::from(["shop/db".to_owned()]));
        let wanted = Wanted { names: Vec::new(), selected, asked: &asked };
        assert_eq!(wanted.of(&rows).iter().map(Row::full_name).collect::<Vec<_>>(), ["shop/db"]);
        assert_eq!(wanted.nothing(), "No resources found in shop namespace.");
        assert!(full_name("shop/web:80", &asked).is_err());
    }
}
