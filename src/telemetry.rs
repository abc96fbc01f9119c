//! Logs: how much, in which form, set up once per process.
//!
//! Lines look like klog's, so that existing log pipelines read them. `-v` maps to levels:
//!
//! | `-v` | our lines | other crates' lines |
//! |---|---|---|
//! | 0, 1 | error, warn, info | error, warn |
//! | 2 to 4 | and debug: one line per sync, what opened and closed | error, warn |
//! | from 5 | and trace: commands and rule text | and info |
//! | from 8 | the same | and debug |
//!
//! A user who may write objects can cause very many lines. So there is a bound for each place in the code that logs,
//! and in it one for each object that its lines name; what was not said is counted in the next line (`suppressed`).
//! Values are cut. The bounds are for what is always shown: `-v` shows all of what it adds.

use crate::model::{Allowance, Rate, UtcTime, cut, printable};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

/// Lines of one kind about one object, and all lines of one kind.
const ABOUT_ONE: Rate = Rate { burst: 5, pace: Duration::from_secs(30) };
const ABOUT_ALL: Rate = Rate { burst: 200, pace: Duration::from_secs(1) };
/// The fields that name what a line is about.
const OBJECT_FIELDS: [&str; 2] = ["object", "service"];
/// Characters of a message or value.
const LONGEST: usize = 2000;

/// Form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// `I1121 05:11:07.123456       1 runner.rs:12] "message" key="value"`.
    Text,
    /// One JSON object with `ts`, `v` or `err`, `caller`, `msg` and the fields.
    Json,
}

/// Starts logging to stderr.
///
/// # Errors
/// When logging was started before.
pub fn init(verbosity: u8, format: LineFormat) -> Result<(), TryInitError> {
    let (filter, handle) = reload::Layer::new(filter(verbosity));
    let lines = lines(format, std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).try_init()?;
    // A second time does not come this far.
    let _ = FILTER.set(handle);
    let _ = FORMAT.set(format);
    Ok(())
}

/// The form of the lines in force, since `init`.
static FORMAT: OnceLock<LineFormat> = OnceLock::new();

/// The form of the lines; `None` before `init`.
#[must_use]
pub fn format() -> Option<LineFormat> {
    FORMAT.get().copied()
}

/// The filter in force, to change it while we run.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes how much is logged; without effect before `init`.
pub fn set_verbosity(verbosity: u8) {
    if let Some(handle) = FILTER.get() {
        // It fails only once the subscriber is gone, which the global one never is.
        let _ = handle.reload(filter(verbosity));
    }
}

fn lines<S, W>(format: LineFormat, writer: W) -> impl Layer<S> + Send + Sync
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer).event_format(Lines {
        format,
        process: std::process::id(),
        allowances: Mutex::default(),
    })
}

fn filter(verbosity: u8) -> Targets {
    let (ours, others) = match verbosity {
        0..=1 => (LevelFilter::INFO, LevelFilter::WARN),
        2..=4 => (LevelFilter::DEBUG, LevelFilter::WARN),
        5..=7 => (LevelFilter::TRACE, LevelFilter::INFO),
        _ => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    Targets::new()
        .with_default(others)
        .with_target("kube_proxy_rs", ours)
        .with_target("netlink", ours)
        // It logs the whole body of an answer it cannot decode, as a warning.
        .with_target("kube_client::client", LevelFilter::ERROR)
}

struct Lines {
    format: LineFormat,
    process: u32,
    /// By the places in the code that log.
    allowances: Mutex<HashMap<Identifier, Allowance<u64>>>,
}

impl Lines {
    /// How many lines of this kind were suppressed before this one; `None` if it is one of them.
    #[allow(clippy::disallowed_methods, reason = "lines are counted by time")]
    fn suppressed(&self, metadata: &Metadata<'_>, fields: &Fields) -> Option<u64> {
        if *metadata.level() > Level::INFO {
            return Some(0);
        }
        let mut allowances = self.allowances.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Allowance::new(ABOUT_ONE, ABOUT_ALL);
        let allowance = allowances.entry(metadata.callsite()).or_insert_with(new);
        allowance.ask(fields.object(), Instant::now()).map(|suppressed| suppressed.all)
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    #[allow(clippy::disallowed_methods, reason = "a log line says when it was written")]
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let longest = if *event.metadata().level() == Level::TRACE { usize::MAX } else { LONGEST };
        let mut fields = Fields { longest, ..Fields::default() };
        event.record(&mut fields);
        match self.suppressed(event.metadata(), &fields) {
            None => return Ok(()),
            Some(0) => {}
            Some(count) => fields.pairs.push(("suppressed", Value::from(count))),
        }
        let now = SystemTime::now();
        let line = match self.format {
            LineFormat::Text => text_line(now, self.process, event.metadata(), &fields),
            LineFormat::Json => json_line(now, event.metadata(), fields),
        };
        writeln!(writer, "{line}")
    }
}

/// The fields of one event, its message set apart.
#[derive(Default)]
struct Fields {
    message: String,
    pairs: Vec<(&'static str, Value)>,
    /// Longer texts are cut.
    longest: usize,
}

impl Fields {
    fn push(&mut self, field: &Field, value: Value) {
        // klog's name for it.
        let name = if field.name() == "error" { "err" } else { field.name() };
        self.pairs.push((name, value));
    }

    fn push_text(&mut self, field: &Field, text: String) {
        let text = if text.len() > self.longest { cut(&text, self.longest) } else { text };
        if field.name() == "message" {
            self.message = text;
        } else {
            self.push(field, Value::String(text));
        }
    }

    /// A number for the object that the line names, if it names one.
    fn object(&self) -> Option<u64> {
        let (_, object) = self.pairs.iter().find(|(name, _)| OBJECT_FIELDS.contains(name))?;
        let mut hasher = DefaultHasher::new();
        object.as_str()?.hash(&mut hasher);
        Some(hasher.finish())
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push_text(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.push_text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.push(field, Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, Value::from(value));
    }
}

fn text_line(now: SystemTime, process: u32, metadata: &Metadata<'_>, fields: &Fields) -> String {
    let time = UtcTime::of(now);
    let mut line = format!(
        "{}{:02}{:02} {:02}:{:02}:{:02}.{:06} {process:7} {}] {:?}",
        severity(*metadata.level()),
        time.month,
        time.day,
        time.hour,
        time.minute,
        time.second,
        time.nanosecond / 1000,
        caller(metadata),
        fields.message,
    );
    for (name, value) in &fields.pairs {
        // Formatting into a String cannot fail.
        let _ = match value {
            Value::String(text) => write!(line, " {name}={text:?}"),
            other => write!(line, " {name}={other}"),
        };
    }
    line
}

fn json_line(now: SystemTime, metadata: &Metadata<'_>, fields: Fields) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let mut object = Map::new();
    object.insert("ts".to_owned(), Value::from(since.as_secs_f64() * 1000.0));
    object.insert("caller".to_owned(), Value::from(caller(metadata)));
    object.insert("msg".to_owned(), Value::from(fields.message));
    match verbosity(*metadata.level()) {
        Some(verbosity) => object.insert("v".to_owned(), Value::from(verbosity)),
        None => object.insert("err".to_owned(), Value::from("")),
    };
    for (name, value) in fields.pairs {
        object.insert(name.to_owned(), value);
    }
    printable(&Value::Object(object).to_string()).into_owned()
}

fn severity(level: Level) -> char {
    match level {
        Level::ERROR => 'E',
        Level::WARN => 'W',
        _ => 'I',
    }
}

/// The least `-v` that shows a level; errors have none.
fn verbosity(level: Level) -> Option<u8> {
    match level {
        Level::ERROR => None,
        Level::WARN | Level::INFO => Some(0),
        Level::DEBUG => Some(2),
        Level::TRACE => Some(5),
    }
}

/// The file, without its folders, and the line.
fn caller(metadata: &Metadata<'_>) -> String {
    let file = metadata.file().map_or(metadata.target(), |path| path.rsplit('/').next().unwrap_or(path));
    format!("{file}:{}", metadata.line().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(verbosity: u8, format: LineFormat, log: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        tracing::subscriber::with_default(
            tracing_subscriber::registry()
                .with(filter(verbosity))
                .with(lines(format, move || writer.clone())),
            log,
        );
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn text_lines_look_like_klogs() {
        let lines = logged(0, LineFormat::Text, || {
            tracing::info!(service = "a/b", changes = 3, healthy = true, "Sync \"done\"");
        });
        let [line] = lines.as_slice() else { panic!("{lines:?}") };
        let (header, rest) = line.split_once("] ").unwrap();
        assert_eq!(rest, r#""Sync \"done\"" service="a/b" changes=3 healthy=true"#);
        let parts: Vec<_> = header.split_whitespace().collect();
        let [date, time, process, caller] = parts.as_slice() else { panic!("{header}") };
        assert!(date.starts_with('I') && date.len() == 5, "{header}");
        assert_eq!(time.len(), "05:11:07.123456".len());
        assert_eq!(*process, std::process::id().to_string());
        assert!(caller.starts_with("telemetry.rs:"), "{header}");
    }

    #[test]
    fn errors_are_named_as_klog_names_them() {
        let lines = logged(0, LineFormat::Text, || {
            let error = io::Error::other("broken");
            tracing::error!(%error, "Sync failed");
        });
        assert!(
            lines[0].starts_with('E') && lines[0].ends_with(r#""Sync failed" err="broken""#),
            "{lines:?}"
        );
    }

    #[test]
    fn json_lines_have_v_or_err() {
        let lines = logged(2, LineFormat::Json, || {
            tracing::debug!(family = %crate::model::IpFamily::V6, "synced");
            tracing::error!(error = "broken", "failed");
        });
        let parsed: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(parsed[0]["msg"], "synced");
        assert_eq!(parsed[0]["v"], 2);
        assert_eq!(parsed[0]["family"], "IPv6");
        assert!(parsed[0]["ts"].as_f64().unwrap() > 1e12);
        assert_eq!((&parsed[1]["err"], &parsed[1]["v"]), (&Value::from("broken"), &Value::Null));
    }

    fn complain(object: impl std::fmt::Display) {
        tracing::warn!(%object, "it is bad");
    }

    #[test]
    fn an_object_has_a_few_lines_at_once_and_what_follows_is_counted() {
        let lines = logged(0, LineFormat::Text, || (0..100).for_each(|_| complain("shop/web")));
        assert_eq!(lines.len(), 5, "{lines:?}");
        let lines = logged(0, LineFormat::Text, || {
            (0..100).for_each(|_| complain("shop/web"));
            complain("shop/db");
        });
        assert!(lines[5].ends_with("\"it is bad\" object=\"shop/db\" suppressed=95"), "{lines:?}");
    }

    #[test]
    fn many_objects_have_many_lines_but_not_all() {
        for format in [LineFormat::Text, LineFormat::Json] {
            let lines = logged(9, format, || {
                (0..10_000).for_each(complain);
                tracing::warn!("another kind of line");
                (0..10_000).for_each(|_| tracing::debug!(object = "shop/web", "asked for"));
            });
            assert!((10_201..10_220).contains(&lines.len()), "{}", lines.len());
        }
    }

    #[test]
    fn a_line_is_never_long_nor_more_than_a_line() {
        let hostile = "x\u{1b}[2J\u{9b}\n\u{202e}".repeat(100_000);
        for format in [LineFormat::Text, LineFormat::Json] {
            let lines =
                logged(0, format, || tracing::error!(value = hostile, %hostile, ?hostile, "{hostile}"));
            let [line] = lines.as_slice() else { panic!("{} lines", lines.len()) };
            assert!(line.len() < 100_000, "{}", line.len());
            assert!(line.chars().all(|c| !c.is_control() && c != '\u{202e}'), "{line}");
        }
        let rules = "-A KUBE-SERVICES -j KUBE-SVC\n".repeat(1000);
        let lines = logged(5, LineFormat::Text, || tracing::trace!(rules, "sent"));
        assert!(lines[0].len() > rules.len(), "rule text is asked for with -v 5");
    }

    const OURS: &[fn()] =
        &[|| tracing::info!("info"), || tracing::debug!("debug"), || tracing::trace!("trace")];
    const OTHERS: &[fn()] = &[
        || tracing::warn!(target: "kube_client::client", "a whole body"),
        || tracing::warn!(target: "hyper", "theirs"),
        || tracing::info!(target: "hyper", "theirs too"),
    ];

    #[test]
    fn verbosity_maps_to_levels() {
        for (verbosity, ours, others) in [(0, 1, 1), (1, 1, 1), (2, 2, 1), (4, 2, 1), (5, 3, 2), (9, 3, 2)] {
            let count =
                |all: &[fn()]| logged(verbosity, LineFormat::Text, || all.iter().for_each(|log| log())).len();
            assert_eq!((count(OURS), count(OTHERS)), (ours, others), "-v {verbosity}");
        }
        let lines = logged(9, LineFormat::Text, || OTHERS.iter().for_each(|log| log()));
        assert!(!lines.iter().any(|line| line.contains("a whole body")), "{lines:?}");
    }
}
