//! Which server we accept as the API server, and which user it takes us for.

use crate::certificates::{Identity, authority, called, with};
use crate::front::{TlsFront, server, server_for_clients_of, server_of_http2, server_with_key_of};
use crate::objects::service;
use crate::picture::{Picture, hurried};
use crate::server::Stub;
use kube_proxy_rs::model::ObjectKind;
use kube_proxy_rs::watch::client::{ClientOptions, Connection};
use rcgen::{BasicConstraints, CertificateParams, IsCa, SanType, date_time_ymd};
use rustls::ServerConfig;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

const WEB: &str = "service shop/web 10.96.0.10";
const DB: &str = "service shop/db 10.96.0.11";

/// The stub server behind TLS, and a folder for the files of its client.
struct Secured {
    server: Stub,
    front: TlsFront,
    folder: TempDir,
}

impl Secured {
    async fn start(config: ServerConfig) -> Self {
        let server = Stub::start();
        server.put(service("web", 10));
        let front = TlsFront::start(config, server.address()).await;
        Secured { server, front, folder: TempDir::new().unwrap() }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file
    }

    fn kubeconfig(&self, trusted: &[&Identity], cluster: Value, user: Value) -> PathBuf {
        self.write("ca.crt", &trusted.iter().map(|identity| identity.pem()).collect::<String>());
        let mut config = json!({
            "current-context": "stub",
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "me"}}],
            "clusters": [{"name": "stub", "cluster": {
                "server": self.front.url(), "certificate-authority": "ca.crt",
            }}],
            "users": [{"name": "me", "user": user}],
        });
        for (field, value) in cluster.as_object().unwrap() {
            config["clusters"][0]["cluster"][field] = value.clone();
        }
        self.write("kubeconfig", &config.to_string())
    }

    async fn watch(&self, trusted: &[&Identity], user: Value) -> Picture {
        Picture::watch(&self.kubeconfig(trusted, json!({}), user), hurried()).await
    }

    /// What a request ends in.
    async fn try_once(&self, trusted: &[&Identity], cluster: Value) -> Result<(), String> {
        let kubeconfig = Some(self.kubeconfig(trusted, cluster, json!({})));
        let connection = Connection::open(&ClientOptions { kubeconfig, master: None }).await.unwrap();
        let request = http::Request::get("/api/v1/services").body(Vec::new()).unwrap();
        let answer = connection.client().request_text(request).await;
        answer.map(drop).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    /// Waits until there have been this many requests.
    async fn until_seen(&self, wanted: usize) {
        while self.server.seen().len() < wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A change that no request of before can tell of.
    async fn next_watch(&self, picture: &mut Picture) {
        let wanted = self.server.seen().len() + 3;
        self.server.disconnect();
        self.until_seen(wanted).await;
        self.server.put(service("db", 11));
        picture.until_it_shows(&[DB, WEB]).await;
    }
}

fn named(name: &str) -> CertificateParams {
    let names = vec![SanType::DnsName(name.try_into().unwrap())];
    with(authority("server"), |params| params.subject_alt_names = names)
}

#[rstest::rstest]
#[case::an_authority(authority("server"), json!({}))]
#[case::no_authority(called("server"), json!({}))]
#[case::explicitly_no_authority(with(called("server"), |params| params.is_ca = IsCa::ExplicitNoCa), json!({}))]
#[case::of_leaves(
    with(called("server"), |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), json!({})
)]
#[case::of_another_name(named("api.example"), json!({"tls-server-name": "api.example"}))]
#[tokio::test]
async fn a_server_certificate_that_is_its_own_authority_is_trusted(
    #[case] params: CertificateParams,
    #[case] cluster: Value,
) {
    let (own, other) = (Identity::self_signed(params), Identity::self_signed(authority("other")));
    let secured = Secured::start(server(&own)).await;
    secured.try_once(&[&own], cluster.clone()).await.unwrap();
    secured.try_once(&[&other, &own], cluster).await.unwrap();
}

#[rstest::rstest]
#[case::an_authority(authority("server"), "an authority (CA:TRUE) which certificate-authority does not name")]
#[case::no_authority(called("server"), "no authority that we trust has signed it")]
#[tokio::test]
async fn a_certificate_that_no_trusted_authority_has_signed_is_refused(
    #[case] params: CertificateParams,
    #[case] words: &str,
) {
    let (own, other) = (Identity::self_signed(params.clone()), Identity::self_signed(params));
    let secured = Secured::start(server(&own)).await;
    // Of the same name, but of another key.
    let error = secured.try_once(&[&other], json!({})).await.unwrap_err();
    assert!(error.contains(words), "{error}");
}

#[rstest::rstest]
#[case::an_authority(authority("server"))]
#[case::no_authority(called("server"))]
#[tokio::test]
async fn a_trusted_certificate_without_its_key_is_refused(#[case] params: CertificateParams) {
    let (own, thief) = (Identity::self_signed(params), Identity::self_signed(called("thief")));
    let secured = Secured::start(server_with_key_of(&own, &thief)).await;
    let error = secured.try_once(&[&own], json!({})).await.unwrap_err();
    assert!(error.contains("does not have the key"), "{error}");
}

#[rstest::rstest]
#[case::an_authority(authority("server"))]
#[case::no_authority(called("server"))]
#[tokio::test]
async fn a_trusted_certificate_of_another_name_or_time_is_refused(#[case] params: CertificateParams) {
    let expect = async |params: CertificateParams, words: &str| {
        let own = Identity::self_signed(params);
        let secured = Secured::start(server(&own)).await;
        let error = secured.try_once(&[&own], json!({})).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    };
    let other = named("api.example").subject_alt_names;
    let words = "it is not for 127.0.0.1, but for api.example; tls-server-name may name what it is for";
    expect(with(params.clone(), |params| params.subject_alt_names = other), words).await;
    expect(with(params.clone(), |params| params.not_after = date_time_ymd(2001, 1, 1)), "expired").await;
    expect(with(params, |params| params.not_before = date_time_ymd(4000, 1, 1)), "not valid yet").await;
}

#[tokio::test]
async fn an_authority_is_no_server_for_the_authority_that_signed_it() {
    let root = Identity::self_signed(authority("root"));
    let between = Identity::signed_by(authority("server"), &root);
    let secured = Secured::start(server(&between)).await;
    let error = secured.try_once(&[&root], json!({})).await.unwrap_err();
    assert!(error.contains("CA:TRUE") && error.contains("certificate-authority"), "{error}");
}

#[tokio::test]
async fn a_server_certificate_and_its_authority_may_be_replaced() {
    let (old, new) = (Identity::self_signed(authority("old")), Identity::self_signed(authority("new")));
    let secured = Secured::start(server(&Identity::signed_by(called("one"), &old))).await;
    let mut picture = secured.watch(&[&old], json!({})).await;
    picture.until_it_shows(&[WEB]).await;
    picture.until_listed(1).await;
    secured.write("ca.crt", &(old.pem() + &new.pem()));
    secured.front.become_server(server(&Identity::signed_by(called("two"), &new)));
    secured.next_watch(&mut picture).await;
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

#[tokio::test]
async fn a_client_certificate_that_is_replaced_is_used_from_the_next_request_on() {
    let root = Identity::self_signed(authority("root"));
    let own = Identity::signed_by(called("server"), &root);
    let secured = Secured::start(server_for_clients_of(&own, &root)).await;
    let write = |client: &Identity| {
        secured.write("client.crt", &client.pem());
        secured.write("client.key", &client.key.serialize_pem());
    };
    let (first, second) = (Identity::signed_by(called("a"), &root), Identity::signed_by(called("b"), &root));
    write(&first);
    let user = json!({"client-certificate": "client.crt", "client-key": "client.key"});
    let mut picture = secured.watch(&[&root], user).await;
    picture.until_it_shows(&[WEB]).await;
    picture.until_listed(1).await;
    assert!(secured.front.has_seen(&first));
    write(&second);
    secured.next_watch(&mut picture).await;
    assert!(secured.front.has_seen(&second));
    assert_eq!(picture.lists[&ObjectKind::Service], 1);
}

/// Connections at the start, and after one end of all of them.
#[rstest::rstest]
#[case::http2(server_of_http2, [1, 2])]
#[case::http1(server, [3, 6])]
#[tokio::test]
async fn all_watches_share_one_connection_where_the_server_speaks_http2(
    #[case] server: fn(&Identity) -> ServerConfig,
    #[case] wanted: [usize; 2],
) {
    let own = Identity::self_signed(called("server"));
    let secured = Secured::start(server(&own)).await;
    let mut picture = secured.watch(&[&own], json!({})).await;
    picture.until_it_shows(&[WEB]).await;
    secured.until_seen(3).await;
    assert_eq!(secured.front.handshakes(), wanted[0]);
    secured.front.hang_up();
    secured.until_seen(6).await;
    secured.server.put(service("db", 11));
    picture.until_it_shows(&[DB, WEB]).await;
    assert_eq!(secured.front.handshakes(), wanted[1]);
}
