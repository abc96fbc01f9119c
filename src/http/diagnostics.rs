//! The paths of the metrics server.

use super::{Reply, Request, Routes, parameter};
use std::sync::Arc;

/// Encodes all metrics: content type and text, or why that failed.
pub type Encode = Box<dyn Fn() -> Result<(&'static str, Vec<u8>), String> + Send + Sync>;

/// What the pages of the metrics server show.
pub struct Pages {
    /// The proxy mode as upstream spells it.
    pub mode: &'static str,
    /// The effective configuration as JSON.
    pub configz: String,
    /// Every flag, for people.
    pub flagz: String,
    /// How we are doing, for people.
    pub statusz: Box<dyn Fn() -> String + Send + Sync>,
    /// The same for machines.
    pub readyz: Box<dyn Fn() -> Reply + Send + Sync>,
    /// All metrics.
    pub metrics: Encode,
    /// What became of the checks of `/healthz`, as metrics.
    pub slis: Encode,
    /// Forgets them.
    pub reset_slis: Box<dyn Fn() + Send + Sync>,
    /// Told that `/healthz` was asked for.
    pub pinged: Box<dyn Fn() + Send + Sync>,
}

/// The answer where kube-proxy has the profiles of its Go runtime.
const NO_PPROF: &str = "There are no pprof profiles: this program is not written in Go.\n\
    perf record -g -p PID shows where it spends its time, /metrics what memory it takes.\n";

/// Serves `/metrics`, `/metrics/slis`, `/healthz`, `/readyz`, `/proxyMode`, `/configz`, `/flagz` and `/statusz`, and
/// says why there is no `/debug/pprof/`.
///
/// `/healthz` here only says that the server answers; the proxy's health has its own server. `/readyz` is the proxy's,
/// in detail.
#[must_use]
pub fn diagnostics(pages: Pages) -> Routes {
    Arc::new(move |request: Request<'_>| match request.path {
        "/metrics" => measured(&pages.metrics),
        "/metrics/slis" if request.method == "DELETE" => {
            (pages.reset_slis)();
            Reply::text(200, "metrics reset\n")
        }
        "/metrics/slis" => measured(&pages.slis),
        "/healthz" => {
            (pages.pinged)();
            healthz(request.query)
        }
        "/healthz/ping" => healthz(request.query),
        "/readyz" => (pages.readyz)(),
        "/proxyMode" => Reply::text(200, pages.mode),
        "/configz" => Reply::json(200, pages.configz.clone()),
        "/flagz" => Reply::text(200, pages.flagz.clone()),
        "/statusz" => Reply::text(200, (pages.statusz)()),
        "/debug/pprof" => Reply::text(501, NO_PPROF),
        path if path.starts_with("/debug/pprof/") => Reply::text(501, NO_PPROF),
        _ => Reply::not_found(),
    })
}

fn measured(encode: &Encode) -> Reply {
    match encode() {
        Ok((content_type, body)) => Reply { status: 200, content_type, headers: Vec::new(), body },
        Err(error) => Reply::text(500, format!("cannot encode the metrics: {error}\n")),
    }
}

fn healthz(query: &str) -> Reply {
    if parameter(query, "verbose").is_some() {
        return Reply::text(200, "[+]ping ok\nhealthz check passed\n");
    }
    Reply::text(200, "ok")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn pages(metrics: Encode) -> Pages {
        Pages {
            mode: "ipvs",
            configz: "{}".to_owned(),
            flagz: "v=2".to_owned(),
            statusz: Box::new(|| "fine".to_owned()),
            readyz: Box::new(|| Reply::json(503, "[]")),
            metrics,
            slis: Box::new(|| Ok(("text/x", b"s 1\n".to_vec()))),
            reset_slis: Box::new(|| {}),
            pinged: Box::new(|| {}),
        }
    }

    fn get(path: &str, query: &str) -> Reply {
        let routes = diagnostics(pages(Box::new(|| Ok(("text/x", b"m 1\n".to_vec())))));
        routes(Request { method: "GET", path, query })
    }

    #[test]
    fn every_path_has_its_content() {
        assert_eq!(
            (get("/metrics", "").content_type, get("/metrics", "").body),
            ("text/x", b"m 1\n".to_vec())
        );
        assert_eq!(get("/metrics/slis", "").body, b"s 1\n");
        assert_eq!(get("/healthz", ""), Reply::text(200, "ok"));
        assert_eq!(get("/healthz/ping", "x=1"), Reply::text(200, "ok"));
        assert_eq!(get("/healthz", "verbose").body, b"[+]ping ok\nhealthz check passed\n");
        assert_eq!(get("/readyz", ""), Reply::json(503, "[]"));
        assert_eq!(get("/proxyMode", ""), Reply::text(200, "ipvs"));
        assert_eq!(get("/configz", ""), Reply::json(200, "{}"));
        assert_eq!(get("/flagz", ""), Reply::text(200, "v=2"));
        assert_eq!(get("/statusz", ""), Reply::text(200, "fine"));
        assert_eq!(get("/debug/flags/v", "").status, 404);
    }

    #[rstest]
    #[case("/debug/pprof")]
    #[case("/debug/pprof/")]
    #[case("/debug/pprof/profile")]
    fn profiles_of_a_go_runtime_are_not_to_be_had(#[case] path: &str) {
        let reply = get(path, "seconds=5");
        assert_eq!(reply.status, 501);
        assert!(String::from_utf8(reply.body).unwrap().contains("not written in Go"));
    }

    #[test]
    fn metrics_that_cannot_be_encoded_are_an_error() {
        let routes = diagnostics(pages(Box::new(|| Err("broken".to_owned()))));
        assert_eq!(routes(Request { method: "GET", path: "/metrics", query: "" }).status, 500);
    }
}
