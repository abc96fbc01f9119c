//! What this program says of itself. The Makefile tells the compiler what only it knows, when it builds a release.

use crate::model::Build;

/// This build.
pub const BUILD: Build<'static> = Build {
    version: env!("CARGO_PKG_VERSION"),
    compatible_with: super::COMPATIBLE_WITH,
    commit: told(option_env!("KUBE_PROXY_RS_COMMIT")),
    date: told(option_env!("KUBE_PROXY_RS_DATE")),
    compiler: told(option_env!("KUBE_PROXY_RS_COMPILER")),
    flags: match (cfg!(debug_assertions), cfg!(target_feature = "crt-static")) {
        (true, true) => "debug,static",
        (true, false) => "debug,dynamic",
        (false, true) => "release,static",
        (false, false) => "release,dynamic",
    },
};

const fn told(value: Option<&'static str>) -> &'static str {
    match value {
        Some(value) => value,
        None => "",
    }
}

/// The answer of `--version=raw`, in one line of `key=value`.
#[must_use]
pub fn raw() -> String {
    let Build { version, compatible_with, commit, date, compiler, flags } = BUILD;
    let or_unknown = |text: &'static str| if text.is_empty() { "unknown" } else { text };
    format!(
        "name=kube-proxy-rs version={version} kubernetes={compatible_with} platform={}/{} \
         commit={} date={} compiler={} flags={flags}",
        std::env::consts::OS,
        std::env::consts::ARCH,
        or_unknown(commit),
        or_unknown(date),
        or_unknown(compiler),
    )
}
