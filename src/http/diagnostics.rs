//! The paths of the metrics server.

use super::{Reply, Request, Routes};
use std::sync::Arc;

/// Encodes all metrics: content type and text, or why that failed.
pub type Encode = Box<dyn Fn() -> Result<(&'static str, Vec<u8>), String> + Send + Sync>;

/// Serves `/metrics`, `/healthz`, `/proxyMode` and `/configz`.
///
/// `mode` is the proxy mode as upstream spells it, `configz` the effective configuration as JSON.
/// `/healthz` here only says that the server answers; the proxy's health has its own server.
#[must_use]
pub fn diagnostics(mode: &'static str, configz: String, metrics: Encode) -> Routes {
    Arc::new(move |request: Request<'_>| match request.path {
        "/metrics" => match metrics() {
            Ok((content_type, body)) => Reply { status: 200, content_type, headers: Vec::new(), body },
            Err(error) => Reply::text(500, format!("cannot encode the metrics: {error}\n")),
        },
        "/healthz" | "/healthz/ping" if asks_for(request.query, "verbose") => {
            Reply::text(200, "[+]ping ok\nhealthz check passed\n")
        }
        "/healthz" | "/healthz/ping" => Reply::text(200, "ok"),
        "/proxyMode" => Reply::text(200, mode),
        "/configz" => Reply::json(200, configz.clone()),
        _ => Reply::not_found(),
    })
}

fn asks_for(query: &str, name: &str) -> bool {
    query.split('&').any(|part| part.split('=').next() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, query: &str) -> Reply {
        let routes = diagnostics("ipvs", "{}".to_owned(), Box::new(|| Ok(("text/x", b"m 1\n".to_vec()))));
        routes(Request { method: "GET", path, query })
    }

    #[test]
    fn every_path_has_its_content() {
        assert_eq!(
            (get("/metrics", "").content_type, get("/metrics", "").body),
            ("text/x", b"m 1\n".to_vec())
        );
        assert_eq!(get("/healthz", ""), Reply::text(200, "ok"));
        assert_eq!(get("/healthz/ping", "x=1"), Reply::text(200, "ok"));
        assert_eq!(get("/healthz", "verbose").body, b"[+]ping ok\nhealthz check passed\n");
        assert_eq!(get("/proxyMode", ""), Reply::text(200, "ipvs"));
        assert_eq!(get("/configz", ""), Reply::json(200, "{}"));
        assert_eq!(get("/debug/pprof", "").status, 404);
    }

    #[test]
    fn metrics_that_cannot_be_encoded_are_an_error() {
        let routes = diagnostics("ipvs", String::new(), Box::new(|| Err("broken".to_owned())));
        assert_eq!(routes(Request { method: "GET", path: "/metrics", query: "" }).status, 500);
    }
}
