//! Programs and users of the node itself: a lock that is not let go, the control socket, a token on the wire, and what is
//! left of root's powers.

use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use kube_proxy_rs::model::IpFamily;
use kube_proxy_rs::testing::lab::{give_idle_uplink, lone_node};
use kube_proxy_rs::testing::netns::Namespace;
use kube_proxy_rs::testing::packets::{NODE_NAME, Place, node_object, to_manifest};
use kube_proxy_rs::testing::proxy::{Flavor, Folder, save, wait_until};
use kube_proxy_rs::testing::stub_api::{load_service, load_slice};

use serde_json::json;

use super::ground::tail;
use crate::BINARY;
use crate::running::Running;

const SYNC: Duration = Duration::from_secs(60);
/// Longer than a tool waits for the lock.
const HELD: Duration = Duration::from_secs(8);
/// An unprivileged user.
const NOBODY: u32 = 65534;

/// The program on a node, with its objects from a file.
struct Local {
    node: Namespace,
    folder: Folder,
}

impl Local {
    fn new() -> Local {
        let (node, folder) = (lone_node().unwrap(), Folder::create().unwrap());
        // Other users may read it, as any system folder.
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let objects = [node_object(), load_service(1), load_slice(1, 2, "elsewhere")];
        folder.write("objects.yaml", &to_manifest(&objects)).unwrap();
        Local { node, folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// A command line that runs the program, after these words.
    fn command(&self, through: &[&str], flavor: Flavor) -> Command {
        let mut command = self.node.command(through.first().unwrap_or(&BINARY));
        command.args(through.iter().skip(1)).args(through.first().map(|_| BINARY));
        command.args([
            "--manifests",
            &self.path("objects.yaml"),
            "--hostname-override",
            NODE_NAME,
            "-v",
            "2",
        ]);
        command.args([
            "--iptables-flavor",
            flavor.as_str(),
            "--control-socket",
            &self.path("run/control.sock"),
        ]);
        let log = File::create(self.path("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    fn wait_for(&self, what: &str, condition: impl FnMut() -> bool) {
        let waited = wait_until(what, SYNC, condition);
        waited.unwrap_or_else(|error| panic!("{error:#}; the log ends:\n{}", tail(&self.log())));
    }

    fn wait_for_rules(&self, flavor: Flavor) {
        self.wait_for("the Service is programmed", || {
            save(flavor, &self.node, false).is_ok_and(|rules| rules.contains("load/s-1:http"))
        });
    }

    /// Asks the proxy for its status as this user.
    fn ask(&self, user: u32, socket: &str) -> (bool, String) {
        let user = user.to_string();
        let as_user = [
            "--reuid",
            &user,
            "--regid",
            &user,
            "--clear-groups",
            BINARY,
            "status",
            "--control-socket",
            socket,
        ];
        let Output { status, stdout, stderr } = self.node.command("setpriv").args(as_user).output().unwrap();
        (status.success(), String::from_utf8([stdout, stderr].concat()).unwrap())
    }
}

/// Another program that takes the lock of the legacy tables and keeps it.
struct Holder(Child);

impl Holder {
    fn take(lock: &str) -> Holder {
        let command = format!("exec 9>>{lock}; flock 9; echo held; exec sleep 600");
        let mut child = Command::new("bash").args(["-c", &command]).stdout(Stdio::piped()).spawn().unwrap();
        let mut word = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut word).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Both fail only when it has gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The machine's own lock stays free: a file of the test's is mounted over it, for the program only.
#[test]
fn a_lock_that_another_program_holds_at_the_start_is_waited_for_and_its_holder_is_named() {
    let local = Local::new();
    let lock = local.path("xtables.lock");
    let holder = Holder::take(&lock);
    let mount = format!("touch /run/xtables.lock && mount --bind {lock} /run/xtables.lock && exec \"$@\"");
    let mut running = Running::start(&mut local.command(&["sh", "-c", &mount, "sh"], Flavor::Legacy));
    let named = format!("held by process {} (sleep)", holder.0.id());
    local.wait_for("the holder is named", || local.log().contains(&named));
    std::thread::sleep(HELD);
    assert!(!running.has_ended(), "{}", local.log());
    assert_eq!(local.log().matches("waiting: the lock").count(), 1, "{}", local.log());
    drop(holder);
    local.wait_for_rules(Flavor::Legacy);
    assert!(!local.log().contains("serving one IP family only"), "{}", local.log());

    // Later, a change waits for it, and the failure names the holder, too.
    let holder = Holder::take(&lock);
    let objects = [node_object(), load_service(1), load_slice(1, 3, "elsewhere")];
    local.folder.write("objects.yaml", &to_manifest(&objects)).unwrap();
    let named = format!("held by process {} (sleep)", holder.0.id());
    local.wait_for("the failed sync names the holder", || {
        local.log().lines().any(|line| line.contains("sync failed") && line.contains(&named))
    });
    drop(holder);
    local.wait_for("the change is in force", || {
        save(Flavor::Legacy, &local.node, false).is_ok_and(|rules| rules.matches("-j DNAT").count() == 3)
    });
}

fn mode(path: &str) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn the_control_socket_is_for_root_and_the_proxys_user_and_an_impostor_is_not_asked() {
    let local = Local::new();
    let (folder, socket) = (local.path("run"), local.path("run/control.sock"));
    // As a container runtime mounts an empty folder.
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
    let running = Running::start(&mut local.command(&[], Flavor::Nft));
    local.wait_for("the socket is there", || Path::new(&socket).exists());
    assert_eq!((mode(&folder), mode(&socket)), (0o700, 0o600));
    let (answered, said) = local.ask(0, &socket);
    assert!(answered && said.contains("State"), "{said}");
    let (answered, said) = local.ask(NOBODY, &socket);
    assert!(!answered && said.contains("only root and the proxy's own user may"), "{said}");
    drop(running);

    // A folder that another user may write to, with a proxy of that user's in it, who would tell root anything.
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    let _impostor = Running::start(&mut local.command(&confined(), Flavor::Nft));
    local.wait_for("the impostor answers its own user", || local.ask(NOBODY, &socket).0);
    let (answered, said) = local.ask(0, &socket);
    assert!(!answered && said.contains("of user 65534 listens there, and is not asked"), "{said}");
    assert!(!said.contains("State"), "{said}");
}

/// Another user than root, with the one capability and no way to more.
fn confined() -> [&'static str; 8] {
    [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all,+net_admin",
        "--ambient-caps=-all,+net_admin",
        "--bounding-set=-all,+net_admin",
        "--no-new-privs",
    ]
}

#[test]
fn another_user_than_root_programs_nft_tables_with_net_admin_alone() {
    let local = Local::new();
    // The init container's part.
    let init = local.command(&[], Flavor::Nft).arg("--init-only").status().unwrap();
    assert!(init.success(), "{}", local.log());
    fs::create_dir(local.path("run")).unwrap();
    chown(local.path("run"), Some(NOBODY), Some(NOBODY)).unwrap();
    let _running = Running::start(&mut local.command(&confined(), Flavor::Nft));
    local.wait_for_rules(Flavor::Nft);
    let (answered, said) = local.ask(NOBODY, &local.path("run/control.sock"));
    assert!(answered && said.contains("healthy"), "{said}");
    // The proxy notices and mends what another program deletes.
    local.node.output("iptables-nft", &["-t", "nat", "-F", "KUBE-SERVICES"]).unwrap();
    local.wait_for("the drift is found", || local.log().contains("chain KUBE-SERVICES of table nat"));
    local.wait_for("the rules are back", || {
        save(Flavor::Nft, &local.node, false).is_ok_and(|rules| rules.contains("-A KUBE-SERVICES"))
    });
    assert!(!local.log().contains("sync failed"), "{}", local.log());
}

/// A listener on the way, or in the place of the API server, gets requests and no token.
#[test]
fn a_token_is_not_sent_over_the_network_without_tls() {
    let local = Local::new();
    give_idle_uplink(&local.node).unwrap();
    let listener =
        local.node.run(|| TcpListener::bind((Place::Node.address(IpFamily::V4), 0))).unwrap().unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "a-secret"}}],
    });
    local.folder.write("kubeconfig", &kubeconfig.to_string()).unwrap();
    let mut command = local.node.command(BINARY);
    command.args([
        "--kubeconfig",
        &local.path("kubeconfig"),
        "--hostname-override",
        NODE_NAME,
        "--control-socket",
        "",
    ]);
    let _running = Running::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let mut asked = String::new();
    let (stream, _) = listener.accept().unwrap();
    for line in BufReader::new(stream).lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
        asked += &format!("{line}\n");
    }
    assert!(asked.contains("HTTP/1.1\n") && asked.contains("kube-proxy-rs/"), "{asked}");
    assert!(!asked.contains("secret") && !asked.to_lowercase().contains("authorization"), "{asked}");
}
