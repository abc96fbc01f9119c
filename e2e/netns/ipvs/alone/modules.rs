//! Kernel modules that are missing. This takes them out of the running kernel, and so is for a virtual machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use kube_proxy_rs::testing::lab::lone_node;

use crate::ipvs::harm::last_words;
use crate::ipvs::{LIMIT, Place, launch, service, wait_for_markers, wait_until};

/// The program that the kernel runs to load a module.
const LOADER: &str = "/proc/sys/kernel/modprobe";

/// While this lives, the kernel cannot load modules by itself.
struct NoLoader(String);

impl NoLoader {
    fn new() -> Self {
        let before = fs::read_to_string(LOADER).unwrap();
        fs::write(LOADER, "/bin/false").unwrap();
        NoLoader(before)
    }
}

impl Drop for NoLoader {
    fn drop(&mut self) {
        fs::write(LOADER, &self.0).unwrap();
    }
}

fn load(modules: &[&str]) {
    let output = Command::new("modprobe").arg("-a").args(modules).output().unwrap();
    assert!(output.status.success(), "modprobe {modules:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Takes a module and those that stand on it out of the kernel; namespaces that are being taken down
/// may still hold it for a while.
fn unload(module: &str, users: &[&str]) {
    wait_until(&format!("{module} is unloaded"), LIMIT, || {
        // Whether it went well shows below.
        let _ = Command::new("modprobe").arg("-r").args(users).arg(module).output().unwrap();
        !Path::new("/sys/module").join(module).exists()
    })
    .unwrap();
}

#[test]
#[ignore = "takes modules out of the kernel; scripts/test-ipvs.sh"]
fn a_missing_module_is_named_and_its_coming_is_noticed() {
    let flags = ["--proxy-mode=ipvs"];
    let objects = service("web", "10.96.9.1", None, &[Place::Local1]);
    {
        // All other modules that are needed get loaded, as long as the kernel can.
        let node = lone_node().unwrap();
        let mut proxy = launch(&node, &flags).start(&objects).unwrap();
        wait_for_markers(&mut proxy, &node);
    }
    let node = lone_node().unwrap();
    let _no_loader = NoLoader::new();
    unload("ip_vs", &["xt_ipvs", "ip_vs_rr"]);
    let words = last_words(&node, &flags);
    assert!(words.contains("IPVS mode needs the kernel module ip_vs"), "{words}");

    load(&["ip_vs", "ip_vs_rr", "xt_ipvs"]);
    unload("dummy", &[]);
    let mut proxy = launch(&node, &flags).start(&objects).unwrap();
    wait_until("the missing module is named", LIMIT, || {
        proxy.log_tail().contains("cannot make interface kube-ipvs0: the kernel module dummy is missing")
    })
    .unwrap_or_else(|error| panic!("{error}:\n{}", proxy.log_tail()));
    load(&["dummy"]);
    wait_for_markers(&mut proxy, &node);
}
