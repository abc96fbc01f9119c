//! Kubeconfigs, good and bad, and what follows from a change of one.

use super::*;

const KUBECONFIG: &str = r#"
apiVersion: v1
kind: Config
current-context: main
contexts: [{name: main, context: {cluster: one, user: me}}]
clusters: [{name: one, cluster: {server: "https://192.0.2.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: me, user: {token: secret}}]
"#;

async fn open(text: &str, master: Option<&str>) -> anyhow::Result<Connection> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    let kubeconfig = Some(file.path().to_owned());
    Connection::open(&ClientOptions { kubeconfig, master: master.map(str::to_owned) }).await
}

async fn complaint(text: &str) -> String {
    format!("{:#}", open(text, None).await.err().expect("this kubeconfig must be refused"))
}

#[tokio::test]
async fn a_kubeconfig_names_the_server() {
    assert_eq!(&*open(KUBECONFIG, None).await.unwrap().url(), "https://192.0.2.1:6443/");
}

#[tokio::test]
async fn master_replaces_the_server_of_the_kubeconfig() {
    let connection = open(KUBECONFIG, Some("https://198.51.100.7")).await.unwrap();
    assert_eq!(&*connection.url(), "https://198.51.100.7/");
}

#[tokio::test]
async fn master_alone_is_enough_and_needs_no_scheme() {
    let options = ClientOptions { kubeconfig: None, master: Some("198.51.100.7:8080".into()) };
    assert_eq!(&*Connection::open(&options).await.unwrap().url(), "http://198.51.100.7:8080/");
}

#[tokio::test]
async fn a_missing_kubeconfig_is_named_once() {
    let options = ClientOptions { kubeconfig: Some("/nonexistent/kubeconfig".into()), master: None };
    let error = format!("{:#}", Connection::open(&options).await.err().unwrap());
    assert_eq!(error, "kubeconfig /nonexistent/kubeconfig: No such file or directory (os error 2)");
}

#[tokio::test]
async fn what_a_kubeconfig_lacks_is_named() {
    assert!(complaint("{}").await.contains("current-context is not set"));
    let error = complaint(&KUBECONFIG.replace("current-context: main", "current-context: other")).await;
    assert!(error.contains("current-context is \"other\""), "{error}");
    let error = complaint(&KUBECONFIG.replace("cluster: one", "cluster: two")).await;
    assert!(error.contains("names cluster \"two\""), "{error}");
    let error = complaint(&KUBECONFIG.replace("server:", "tls-server-name:")).await;
    assert!(error.contains("cluster \"one\" has no server"), "{error}");
    let error = complaint("contexts: 7").await;
    assert!(error.contains("YAML"), "{error}");
}

#[tokio::test]
async fn a_missing_client_certificate_is_named() {
    let error =
        complaint(&KUBECONFIG.replace(
            "{token: secret}",
            "{client-certificate: /nonexistent/crt, client-key: /nonexistent/key}",
        ))
        .await;
    assert!(error.contains("/nonexistent/"), "{error}");
}

/// What is at the place of the user in the kubeconfig is refused with these words.
#[rstest::rstest]
#[case::no_token_file("{tokenFile: /nonexistent/token}", "token file /nonexistent/token: No such file")]
#[case::empty_token_file("{tokenFile: /dev/null}", "token file /dev/null is empty")]
#[case::no_text(
    "{tokenFile: /proc/self/exe}",
    "token file /proc/self/exe: stream did not contain valid UTF-8"
)]
#[case::several_lines("{token: \"a\\nb\"}", "the token cannot be sent: ")]
#[case::no_plugin(
    "{exec: {command: /nonexistent/plugin}}",
    "unable to run auth exec: No such file or directory"
)]
#[case::twice("{token: a, username: me, password: b}", "a token and a username")]
#[tokio::test]
async fn a_user_who_cannot_be_used_is_refused_by_name(#[case] user: &str, #[case] words: &str) {
    let error = complaint(&KUBECONFIG.replace("{token: secret}", user)).await;
    assert!(error.contains(words), "{error}");
}

#[rstest::rstest]
#[case("{token: '', tokenFile: '', username: '', password: '', client-certificate: '', client-key-data: ''}")]
#[case("{as: '', as-uid: ''}")]
#[case("{token: secret, exec: {command: /nonexistent/plugin}}")]
#[tokio::test]
async fn what_is_empty_or_not_needed_is_no_mistake(#[case] user: &str) {
    let text = KUBECONFIG.replace("{token: secret}", user).replace(
        "{server:",
        "{certificate-authority: '', certificate-authority-data: '', tls-server-name: '', proxy-url: '', server:",
    );
    open(&text, None).await.unwrap();
}

/// What is at the place of the server in the kubeconfig is refused with these words.
#[rstest::rstest]
#[case::no_file(
    "certificate-authority: /nonexistent/ca",
    "certificate-authority /nonexistent/ca: No such file"
)]
#[case::no_certificate(
    "certificate-authority: /dev/null",
    "there is no certificate in certificate-authority"
)]
#[case::not_encoded("certificate-authority-data: '***'", "certificate-authority-data is not base64")]
#[case::not_checked(
    "insecure-skip-tls-verify: true, certificate-authority: /etc/ca",
    "insecure-skip-tls-verify"
)]
#[case::no_name("tls-server-name: 'a b'", "tls-server-name")]
#[tokio::test]
async fn a_server_that_cannot_be_checked_is_refused_by_name(#[case] fields: &str, #[case] words: &str) {
    let error = complaint(&KUBECONFIG.replace("insecure-skip-tls-verify: true", fields)).await;
    assert!(error.contains(words), "{error}");
}

#[tokio::test]
async fn no_secret_is_sent_without_tls() {
    let text = KUBECONFIG.replace("https://", "http://");
    for user in
        ["{token: secret}", "{tokenFile: /nonexistent}", "{username: me, password: secret}", "{as: me}"]
    {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text.replace("{token: secret}", user)).unwrap();
        let options = ClientOptions { kubeconfig: Some(file.path().to_owned()), master: None };
        let config = kubeconfig::load(&options).unwrap().config;
        assert!(config.headers.iter().all(|(name, _)| name != http::header::AUTHORIZATION));
        assert!(config.auth_info.username.is_none() && config.auth_info.token_file.is_none());
        assert_eq!(config.auth_info.impersonate.as_deref() == Some("me"), user == "{as: me}");
    }
}

struct Followed {
    file: tempfile::NamedTempFile,
    connection: Connection,
}

impl Followed {
    async fn open() -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), KUBECONFIG).unwrap();
        let options = ClientOptions { kubeconfig: Some(file.path().to_owned()), master: None };
        Followed { connection: Connection::open(&options).await.unwrap(), file }
    }

    /// The server and the complaint, once the kubeconfig is this.
    async fn after(&self, text: &str) -> (String, Option<String>) {
        std::fs::write(self.file.path(), text).unwrap();
        let made = self.connection.shared.follow_files().await;
        (made.url.to_string(), made.complaint)
    }
}

#[tokio::test]
async fn a_changed_kubeconfig_is_followed() {
    let followed = Followed::open().await;
    let changed = KUBECONFIG.replace("192.0.2.1:6443", "192.0.2.200:6443");
    assert_eq!(followed.after(&changed).await, ("https://192.0.2.200:6443/".to_owned(), None));
}

#[tokio::test]
async fn a_broken_kubeconfig_leaves_the_old_server_until_it_is_mended() {
    let followed = Followed::open().await;
    let (url, complaint) = followed.after("half a fi").await;
    assert_eq!(url, "https://192.0.2.1:6443/");
    assert!(complaint.unwrap().contains("kubeconfig "));
    let changed = KUBECONFIG.replace("192.0.2.1:6443", "192.0.2.200:6443");
    assert_eq!(followed.after(&changed).await, ("https://192.0.2.200:6443/".to_owned(), None));
}

#[tokio::test]
async fn what_goes_on_from_one_server_is_not_sent_to_another() {
    let followed = Followed::open().await;
    let server = followed.connection.url();
    followed.after(&KUBECONFIG.replace("192.0.2.1:6443", "192.0.2.200:6443")).await;
    let request = http::Request::get("/version").body(Body::empty()).unwrap();
    let error = followed.connection.send(Some(&server), request).await.unwrap_err().to_string();
    assert!(error.contains("the kubeconfig names another server now: https://192.0.2.200:6443/"), "{error}");
}

#[tokio::test]
async fn a_server_that_is_silent_in_the_handshake_is_dialled_again() {
    const SOON: Duration = Duration::from_secs(20);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let server = listener.local_addr().unwrap().to_string();
    std::fs::write(file.path(), KUBECONFIG.replace("192.0.2.1:6443", &server)).unwrap();
    let options = ClientOptions { kubeconfig: Some(file.path().to_owned()), master: None };
    let connection = Connection::open(&options).await.unwrap();
    for _ in 0..2 {
        let connection = connection.clone();
        let request = http::Request::get("/version").body(Body::empty()).unwrap();
        let sending = tokio::spawn(async move { connection.send(None, request).await.map(drop) });
        let _silent = tokio::time::timeout(SOON, listener.accept()).await.expect("it is dialled").unwrap();
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        let error = sending.await.unwrap().unwrap_err().to_string();
        assert!(error.contains("no TLS and HTTP connection within 10s"), "{error}");
    }
}
