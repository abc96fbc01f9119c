//! Who we are to the API server: tokens from files, and what happens when the files change.

use crate::certificates::{Identity, called};
use crate::front::{TlsFront, server};
use crate::objects::service;
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::model::ObjectKind;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const WEB: &str = "service shop/web 10.96.0.10";
const DB: &str = "service shop/db 10.96.0.11";

/// A server that lets in one token, and a folder for the files of its client.
struct Guarded {
    server: Stub,
    front: TlsFront,
    folder: TempDir,
}

impl Guarded {
    async fn start(token: &str) -> Self {
        let stub = Stub::start();
        stub.put(service("web", 10));
        let own = Identity::self_signed(called("server"));
        let front = TlsFront::start(server(&own), stub.address()).await;
        let guarded = Guarded { server: stub, front, folder: TempDir::new().unwrap() };
        guarded.write("ca.crt", &own.pem());
        guarded.let_in(token);
        guarded
    }

    fn let_in(&self, token: &str) {
        self.server.behave(|behaviour| behaviour.token = Some(token.to_owned()));
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.file(name), text).unwrap();
    }

    async fn watch(&self, user: serde_json::Value) -> Picture {
        let config = json!({
            "current-context": "stub",
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me"}}],
            "clusters": [{"name": "stub", "cluster": {
                "server": self.front.url(), "certificate-authority": "ca.crt",
            }}],
            "users": [{"name": "me", "user": user}],
        });
        self.write("kubeconfig", &config.to_string());
        Picture::watch(&self.file("kubeconfig"), hurried()).await
    }

    /// Ends the watches, and waits for `requests` requests after that.
    async fn end_watches(&self, requests: usize) {
        let wanted = self.server.seen().len() + requests;
        self.server.end_watches();
        while self.server.seen().len() < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A change that no request of before can tell of.
    async fn next_watch(&self, picture: &mut Picture) {
        self.end_watches(3).await;
        self.server.put(service("db", 11));
        picture.until_it_shows(&[DB, WEB]).await;
    }
}

#[rstest::rstest]
#[case::newline("secret\n")]
#[case::carriage_return("secret\r\n")]
#[case::blanks(" \tsecret \n\n")]
#[case::nothing("secret")]
#[tokio::test]
async fn a_token_is_sent_without_the_white_space_around_it(#[case] text: &str) {
    let guarded = Guarded::start("secret").await;
    guarded.write("token", text);
    for user in [json!({"tokenFile": "token"}), json!({"token": text})] {
        let mut picture = guarded.watch(user).await;
        picture.until_it_shows(&[WEB]).await;
    }
}

#[tokio::test]
async fn the_file_of_a_token_counts_for_more_than_the_token() {
    let guarded = Guarded::start("secret").await;
    guarded.write("token", "secret");
    let mut picture = guarded.watch(json!({"tokenFile": "token", "token": "old"})).await;
    picture.until_it_shows(&[WEB]).await;
}

#[tokio::test]
async fn a_token_that_is_replaced_is_used_from_the_next_request_on() {
    let guarded = Guarded::start("first").await;
    guarded.write("token", "first\n");
    let mut picture = guarded.watch(json!({"tokenFile": "token"})).await;
    picture.until_listed(1).await;
    guarded.write("token", "second\n");
    guarded.let_in("second");
    guarded.next_watch(&mut picture).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

/// The kubelet replaces the tokens of a pod by pointing a link at another folder.
#[tokio::test]
async fn a_token_behind_a_link_that_is_turned_is_used_from_the_next_request_on() {
    let guarded = Guarded::start("first").await;
    let turn = |folder: &str, token: &str| {
        std::fs::create_dir(guarded.file(folder)).unwrap();
        guarded.write(&format!("{folder}/token"), token);
        std::os::unix::fs::symlink(folder, guarded.file("new")).unwrap();
        std::fs::rename(guarded.file("new"), guarded.file("data")).unwrap();
    };
    turn("one", "first");
    std::os::unix::fs::symlink("data/token", guarded.file("token")).unwrap();
    let mut picture = guarded.watch(json!({"tokenFile": "token"})).await;
    picture.until_listed(1).await;
    turn("two", "other");
    guarded.let_in("other");
    guarded.next_watch(&mut picture).await;
}

#[tokio::test]
async fn a_token_that_expires_before_its_file_is_replaced_costs_no_list() {
    let guarded = Guarded::start("first").await;
    guarded.write("token", "first");
    let mut picture = guarded.watch(json!({"tokenFile": "token"})).await;
    picture.until_listed(1).await;
    guarded.let_in("second");
    guarded.end_watches(10).await;
    guarded.write("token", "second");
    guarded.server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[rstest::rstest]
#[case::is_gone(|file: &Path| std::fs::remove_file(file).unwrap())]
#[case::is_empty(|file: &Path| std::fs::write(file, "\n").unwrap())]
#[tokio::test]
async fn the_last_token_counts_as_long_as_its_file(#[case] spoil: fn(&Path)) {
    let guarded = Guarded::start("secret").await;
    guarded.write("token", "secret");
    let mut picture = guarded.watch(json!({"tokenFile": "token"})).await;
    picture.until_listed(1).await;
    spoil(&guarded.file("token"));
    guarded.next_watch(&mut picture).await;
}

/// An exec plugin that says what is in a file, as a token without an end.
#[tokio::test]
async fn a_plugin_is_asked_again_when_its_token_is_refused() {
    let guarded = Guarded::start("first").await;
    let credential = |token: &str| {
        let credential = json!({
            "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
            "status": {"token": token},
        });
        guarded.write("credential", &credential.to_string());
    };
    credential("first");
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "command": "cat",
        "args": [guarded.file("credential")], "interactiveMode": "Never",
    });
    let mut picture = guarded.watch(json!({"exec": exec})).await;
    picture.until_listed(1).await;
    credential("second");
    guarded.let_in("second");
    guarded.next_watch(&mut picture).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}
