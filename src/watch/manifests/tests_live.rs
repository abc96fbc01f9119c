//! Tests of watching: real files, and a deadline instead of sleeps.

use super::*;
use crate::model::{ServiceName, SliceName};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::symlink;
use tokio::task::JoinHandle;

/// Everything should have happened by then, however busy the machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running source and what it has said so far.
struct Live {
    folder: TempDir,
    receiver: mpsc::Receiver<WatchEvent>,
    task: JoinHandle<Result<()>>,
    ports: BTreeMap<ServiceName, u16>,
    slices: BTreeMap<SliceName, usize>,
    node: bool,
    listed: usize,
    /// What the source cannot tell, without the folder's name.
    problems: Vec<String>,
}

impl Live {
    /// Runs on a folder with these files, until all has been listed.
    async fn start(files: &[(&str, &str)]) -> Self {
        Self::start_on(folder(files), |folder| vec![folder.to_owned()]).await
    }

    async fn start_on(folder: TempDir, paths: impl FnOnce(&Path) -> Vec<PathBuf>) -> Self {
        let (sender, receiver) = mpsc::channel(16);
        let options = ManifestOptions { last_good: Some(folder.path().join("run")), ..options() };
        let task = tokio::spawn(run(paths(folder.path()), options, sender));
        let (ports, slices, problems) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let mut live = Live { folder, receiver, task, ports, slices, node: false, listed: 0, problems };
        live.until("all kinds are listed", |live| live.listed == 3).await;
        live
    }

    /// Ends, and starts again on what is there now.
    async fn restart(self) -> Self {
        let Live { folder, receiver, task, .. } = self;
        drop(receiver);
        task.await.unwrap().unwrap();
        Self::start_on(folder, |folder| vec![folder.to_owned()]).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Replaces a file the careful way.
    fn replace(&self, name: &str, text: &str) {
        let new = self.path(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    fn port_of(&self, name: &str) -> Option<u16> {
        self.ports.get(&ServiceName::new("shop", name)).copied()
    }

    async fn until(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !is_so(self) {
                let event = self.receiver.recv().await.expect("the source has ended");
                self.fold(event);
            }
        };
        let in_time = tokio::time::timeout(DEADLINE, waiting).await.is_ok();
        assert!(in_time, "not so within {DEADLINE:?}: {what}; {:?} {:?}", self.ports, self.slices);
    }

    fn fold(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Listing(_) => {}
            WatchEvent::Listed(_) => self.listed += 1,
            WatchEvent::Service(service) => {
                _ = self.ports.insert(service.name.clone(), service.ports[0].port)
            }
            WatchEvent::ServiceGone(name) => _ = self.ports.remove(&name),
            WatchEvent::Slice(slice) => _ = self.slices.insert(slice.name.clone(), slice.endpoints.len()),
            WatchEvent::SliceGone(name) => _ = self.slices.remove(&name),
            WatchEvent::Node(_) => self.node = true,
            WatchEvent::NodeGone => self.node = false,
            WatchEvent::Problems(problems) => {
                let folder = format!("{}/", self.folder.path().display());
                self.problems = problems.iter().map(|it| it.to_string().replace(&folder, "")).collect();
            }
            WatchEvent::ServiceCidr(..) | WatchEvent::ServiceCidrGone(_) => panic!("not read from manifests"),
            WatchEvent::ApiServer(_) => panic!("manifests have no API server"),
        }
    }
}

fn service(name: &str, port: u16) -> String {
    SERVICE.replace("name: web", &format!("name: {name}")).replace("port: 80", &format!("port: {port}"))
}

#[tokio::test]
async fn a_file_that_is_replaced_is_read_again() {
    let mut live = Live::start(&[("a.yaml", SERVICE)]).await;
    assert_eq!(live.port_of("web"), Some(80));
    live.replace("a.yaml", &service("web", 81));
    live.until("the port is 81", |live| live.port_of("web") == Some(81)).await;
}

#[tokio::test]
async fn a_file_that_comes_or_goes_brings_or_takes_its_objects() {
    let mut live = Live::start(&[]).await;
    fs::write(live.path("a.yaml"), documents(&[SERVICE, SLICE, NODE])).unwrap();
    live.until("all are there", |live| live.port_of("web").is_some() && live.slices.len() == 1 && live.node)
        .await;
    fs::remove_file(live.path("a.yaml")).unwrap();
    live.until("all are gone", |live| live.ports.is_empty() && live.slices.is_empty() && !live.node).await;
}

#[tokio::test]
async fn an_object_taken_out_of_a_file_is_gone_and_the_others_stay() {
    let text = documents(&[&service("one", 1), &service("two", 2)]);
    let mut live = Live::start(&[("a.yaml", &text)]).await;
    live.replace("a.yaml", &service("two", 2));
    live.until("one is gone", |live| live.port_of("one").is_none()).await;
    assert_eq!(live.port_of("two"), Some(2));
}

#[tokio::test]
async fn a_service_that_becomes_headless_is_gone() {
    let mut live = Live::start(&[("a.yaml", SERVICE)]).await;
    live.replace("a.yaml", &SERVICE.replace("10.0.0.1", "None"));
    live.until("it is gone", |live| live.ports.is_empty()).await;
}

#[tokio::test]
async fn a_file_written_in_place_is_not_read_half() {
    let text = documents(&[&service("one", 1), &service("two", 2)]);
    let mut live = Live::start(&[("a.yaml", &text)]).await;
    let mut file = OpenOptions::new().write(true).truncate(true).open(live.path("a.yaml")).unwrap();
    // Without its second document the text is just as good, but its writer is not done.
    file.write_all(service("one", 11).as_bytes()).unwrap();
    file.flush().unwrap();
    // Another file's change is told meanwhile or later, but nothing says that `two` is gone.
    fs::write(live.path("b.yaml"), service("three", 3)).unwrap();
    tokio::time::sleep(QUIET_TIME).await;
    file.write_all(format!("---\n{}", service("two", 22)).as_bytes()).unwrap();
    drop(file);
    let mut lost = false;
    while live.port_of("two") != Some(22) || live.port_of("three") != Some(3) {
        let event = tokio::time::timeout(DEADLINE, live.receiver.recv()).await.unwrap().unwrap();
        lost |= matches!(event, WatchEvent::ServiceGone(_));
        live.fold(event);
    }
    assert!(!lost, "a Service was taken back");
    assert_eq!(live.port_of("one"), Some(11));
}

/// The writer in the test pauses, which is the situation and not a way to wait for something.
const QUIET_TIME: Duration = Duration::from_millis(60);

#[tokio::test]
async fn a_file_that_becomes_bad_keeps_its_last_good_content_and_others_go_on() {
    let good = documents(&[&service("one", 1), &service("two", 2)]);
    let mut live = Live::start(&[("a.yaml", &good), ("b.yaml", &service("three", 3))]).await;
    live.replace("a.yaml", "kind: [");
    live.replace("b.yaml", &service("three", 33));
    live.until("three has moved", |live| live.port_of("three") == Some(33)).await;
    assert_eq!((live.port_of("one"), live.port_of("two")), (Some(1), Some(2)));
    assert!(
        live.problems[0].starts_with("a.yaml: cannot be read: document 1: line 1: "),
        "{:?}",
        live.problems
    );
    live.replace("a.yaml", &service("two", 222));
    live.until("it is good again", |live| live.port_of("two") == Some(222) && live.ports.len() == 2).await;
    assert_eq!(live.problems, [""; 0]);
}

#[tokio::test]
async fn a_bad_field_holds_back_its_object_and_no_other() {
    let good = documents(&[&service("one", 1), &service("two", 2), &service("three", 3)]);
    let mut live = Live::start(&[("a.yaml", &good)]).await;
    let bad_address = service("two", 22).replace("10.0.0.1", "10.0.0.300");
    let bad_type = service("two", 23).replace("port: 23", "port: x");
    for (port, bad, field) in [(11, &bad_address, "spec.clusterIP"), (12, &bad_type, "spec.ports[0].port")] {
        live.replace("a.yaml", &documents(&[&service("one", port), bad]));
        live.until("one has moved", |live| live.port_of("one") == Some(port) && live.ports.len() == 2).await;
        assert_eq!(live.port_of("two"), Some(2));
        let problem = &live.problems[0];
        assert!(
            problem.starts_with(&format!("a.yaml: document 2: Service shop/two: {field}: ")),
            "{problem}"
        );
        assert!(problem.ends_with("; what it said last stays in force"), "{problem}");
        live = live.restart().await;
        assert_eq!((live.port_of("one"), live.port_of("two")), (Some(port), Some(2)), "after a restart");
    }
    live.replace("a.yaml", &service("one", 13));
    live.until("two is gone", |live| live.ports.len() == 1).await;
}

/// What hides which objects a file holds.
#[rstest]
#[case::syntax("kind: [")]
#[case::no_text("\u{0}\u{1}")]
#[case::part(&documents(&[&service("new", 5), "{"]))]
#[case::kind_is_missing(&SERVICE.replace("kind: Service", "kin: Service"))]
#[case::name_is_bad(&SERVICE.replace("name: web,", "name: We_b,"))]
#[case::name_is_missing(&SERVICE.replace("name: web,", ""))]
#[tokio::test]
async fn a_restart_on_a_file_that_cannot_be_read_removes_nothing_of_it(#[case] broken: &str) {
    let good = documents(&[&service("one", 1), &service("two", 2), SLICE, NODE]);
    let live = Live::start(&[("a.yaml", &good), ("b.yaml", &service("three", 3))]).await;
    live.replace("a.yaml", broken);
    live.replace("b.yaml", &documents(&[&service("three", 33), &service("four", 4)]));
    let mut live = live.restart().await;
    let ports = |live: &Live| ["one", "two", "three", "four"].map(|name| live.port_of(name));
    assert_eq!(ports(&live), [Some(1), Some(2), Some(33), Some(4)], "{:?}", live.problems);
    assert!(live.slices.len() == 1 && live.node);
    assert!(live.problems[0].starts_with("a.yaml: cannot be read: "), "{:?}", live.problems);
    // A second restart knows no less.
    live = live.restart().await;
    assert_eq!(ports(&live), [Some(1), Some(2), Some(33), Some(4)]);
    live.replace("a.yaml", &documents(&[&service("two", 22), NODE]));
    live.until("it is read again", |live| {
        ports(live) == [None, Some(22), Some(33), Some(4)]
            && live.slices.is_empty()
            && live.problems.is_empty()
    })
    .await;
    assert!(live.node);
}

#[tokio::test]
async fn a_file_that_is_gone_at_a_restart_takes_its_objects_with_it() {
    let mut live = Live::start(&[("a.yaml", SERVICE), ("b.yaml", &service("three", 3))]).await;
    live.replace("a.yaml", "{");
    live = live.restart().await;
    assert_eq!(live.port_of("web"), Some(80));
    fs::remove_file(live.path("a.yaml")).unwrap();
    live = live.restart().await;
    assert_eq!((live.ports.len(), live.problems.len()), (1, 0));
    // It comes back with a mistake: what it said before it went is forgotten.
    live.replace("a.yaml", "{");
    live.until("it is found broken", |live| !live.problems.is_empty()).await;
    assert!(live.problems[0].ends_with("; what it said before is not known"), "{:?}", live.problems);
    assert_eq!(live.ports.len(), 1);
}

#[tokio::test]
async fn what_was_never_read_is_said_to_be_unknown() {
    let live = Live::start(&[("a.yaml", "{"), ("b.yaml", SERVICE)]).await;
    assert_eq!(live.ports.len(), 1);
    assert!(live.problems[0].ends_with("; what it said before is not known"), "{:?}", live.problems);
    // The part of it that can be read does not make it known.
    live.replace("a.yaml", &documents(&["{", &service("two", 2)]));
    let live = live.restart().await;
    assert_eq!(live.port_of("two"), Some(2));
    assert!(live.problems[0].ends_with("; what it said before is not known"), "{:?}", live.problems);
}

#[tokio::test]
async fn where_nothing_can_be_written_memory_has_to_do() {
    let root = folder(&[("a.yaml", SERVICE), ("run", "in the way of the folder")]);
    let mut live = Live::start_on(root, |folder| vec![folder.to_owned()]).await;
    live.replace("a.yaml", "{");
    live.until("it is found broken", |live| !live.problems.is_empty()).await;
    assert_eq!(live.port_of("web"), Some(80));
    live.replace("a.yaml", &service("web", 81));
    live.until("it is read again", |live| live.port_of("web") == Some(81)).await;
}

#[tokio::test]
async fn what_can_be_read_goes_before_what_was_said_last() {
    let live = Live::start(&[("a.yaml", &service("web", 1)), ("b.yaml", "")]).await;
    live.replace("a.yaml", "{");
    live.replace("b.yaml", &service("web", 2));
    let mut live = live.restart().await;
    assert_eq!(live.port_of("web"), Some(2));
    live.replace("b.yaml", "");
    live.until("the last word counts again", |live| live.port_of("web") == Some(1)).await;
}

#[tokio::test]
async fn a_file_that_was_never_good_is_used_as_far_as_it_goes() {
    let mut live = Live::start(&[("a.yaml", &documents(&[&service("one", 1), "{"]))]).await;
    assert_eq!(live.port_of("one"), Some(1));
    live.replace("a.yaml", &documents(&["{", &service("two", 2)]));
    live.until("two instead of one", |live| live.port_of("two") == Some(2) && live.ports.len() == 1).await;
}

#[tokio::test]
async fn an_object_falls_to_the_next_file_that_has_it() {
    let second = documents(&[&service("web", 2), &service("other", 3)]);
    let mut live = Live::start(&[("a.yaml", &service("web", 1)), ("b.yaml", &second)]).await;
    assert_eq!(live.port_of("web"), Some(1));
    fs::remove_file(live.path("a.yaml")).unwrap();
    live.until("the second file's counts", |live| live.port_of("web") == Some(2)).await;
    live.replace("a.yaml", &service("web", 5));
    live.until("the first file's counts again", |live| live.port_of("web") == Some(5)).await;
    assert_eq!(live.port_of("other"), Some(3));
}

#[tokio::test]
async fn a_config_map_volume_changes_all_its_files_at_once() {
    let root = folder(&[]);
    for (version, port) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(root.path().join(version)).unwrap();
        fs::write(root.path().join(version).join("a.yaml"), service("a", port)).unwrap();
        fs::write(root.path().join(version).join("b.yaml"), service("b", port)).unwrap();
    }
    symlink("..1", root.path().join("..data")).unwrap();
    for name in ["a.yaml", "b.yaml"] {
        symlink(Path::new("..data").join(name), root.path().join(name)).unwrap();
    }
    let mut live = Live::start_on(root, |folder| vec![folder.to_owned()]).await;
    assert_eq!((live.port_of("a"), live.port_of("b")), (Some(1), Some(1)));
    symlink("..2", live.path("..data_tmp")).unwrap();
    fs::rename(live.path("..data_tmp"), live.path("..data")).unwrap();
    live.until("both have moved", |live| live.port_of("a") == Some(2) && live.port_of("b") == Some(2)).await;
}

#[tokio::test]
async fn a_change_behind_a_link_is_found_by_looking() {
    let target = folder(&[("real.yaml", SERVICE)]);
    let root = folder(&[]);
    symlink(target.path().join("real.yaml"), root.path().join("a.yaml")).unwrap();
    let mut live = Live::start_on(root, |folder| vec![folder.to_owned()]).await;
    fs::write(target.path().join("real.yaml"), service("web", 81)).unwrap();
    live.until("the port is 81", |live| live.port_of("web") == Some(81)).await;
}

#[tokio::test]
async fn a_single_file_may_go_and_come_back() {
    let root = folder(&[("services", SERVICE), ("noise.yaml", "]")]);
    let mut live = Live::start_on(root, |folder| vec![folder.join("services")]).await;
    assert_eq!(live.ports.len(), 1);
    fs::remove_file(live.path("services")).unwrap();
    live.until("it is gone", |live| live.ports.is_empty()).await;
    fs::write(live.path("services"), service("web", 81)).unwrap();
    live.until("it is back", |live| live.port_of("web") == Some(81)).await;
}

#[tokio::test]
async fn a_folder_that_is_replaced_is_still_watched() {
    let root = folder(&[]);
    for (name, port) in [("now", 1), ("next", 2)] {
        fs::create_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name).join("a.yaml"), service("web", port)).unwrap();
    }
    let mut live = Live::start_on(root, |root| vec![root.join("now")]).await;
    fs::rename(live.path("now"), live.path("old")).unwrap();
    fs::rename(live.path("next"), live.path("now")).unwrap();
    live.until("the new one counts", |live| live.port_of("web") == Some(2)).await;
    fs::write(live.path("now/a.yaml"), service("web", 3)).unwrap();
    live.until("its changes count", |live| live.port_of("web") == Some(3)).await;
}

#[tokio::test]
async fn a_folder_that_cannot_be_looked_at_keeps_its_files() {
    let root = folder(&[("b.yaml", &service("other", 1))]);
    fs::create_dir(root.path().join("one")).unwrap();
    fs::write(root.path().join("one/a.yaml"), SERVICE).unwrap();
    symlink("one", root.path().join("now")).unwrap();
    let mut live = Live::start_on(root, |root| vec![root.join("now"), root.join("b.yaml")]).await;
    // A link that leads to itself: neither there nor gone.
    fs::remove_file(live.path("now")).unwrap();
    symlink("now", live.path("now")).unwrap();
    live.replace("b.yaml", &service("other", 2));
    live.until("the other file has been read", |live| live.port_of("other") == Some(2)).await;
    assert_eq!(live.port_of("web"), Some(80));
    assert!(live.problems[0].starts_with("now: cannot be read: "), "{:?}", live.problems);
    fs::remove_file(live.path("now")).unwrap();
    live.until("it is gone", |live| live.ports.len() == 1 && live.problems.is_empty()).await;
}

#[tokio::test]
async fn a_path_that_does_not_exist_ends_the_source_at_once() {
    let (sender, _receiver) = mpsc::channel(1);
    let error = run(vec!["/nowhere/at/all.yaml".into()], options(), sender).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all.yaml: No such file"), "{error}");
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let live = Live::start(&[("a.yaml", SERVICE)]).await;
    drop(live.receiver);
    let ended = tokio::time::timeout(DEADLINE, live.task).await;
    assert!(ended.unwrap().unwrap().is_ok());
}
