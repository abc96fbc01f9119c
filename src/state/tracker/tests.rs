use super::*;
use crate::model::{EndpointFacts, Protocol, ServicePort, SliceEndpoint, SlicePort};

fn service(name: &str, created: i64, node_port: u16) -> WatchEvent {
    WatchEvent::Service(Box::new(Service {
        name: ServiceName::new("shop", name),
        created: Some(created),
        cluster_ips: PerFamily { v4: Some([10, 96, 0, name.as_bytes()[0]].into()), v6: None },
        internal_traffic_policy: Default::default(),
        affinity_seconds: None,
        ipvs_scheduler: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port }].into(),
        external: None,
    }))
}

fn slice(name: &str, service: &str, last: u8) -> WatchEvent {
    WatchEvent::Slice(Box::new(EndpointSlice {
        name: format!("shop/{name}").into(),
        service: ServiceName::new("shop", service),
        family: IpFamily::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: [SliceEndpoint {
            address: [10, 128, 0, last].into(),
            facts: EndpointFacts::new(true, true, false, false),
            hints: 0,
        }]
        .into(),
        hints: [].into(),
        refused: 0,
        triggered: Some(1000 + i64::from(last)),
    }))
}

fn names(changes: &ChangedObjects) -> Vec<&str> {
    changes.services.iter().map(ServiceName::as_str).collect()
}

#[test]
fn nothing_is_complete_before_both_lists_are() {
    let mut tracker = Tracker::default();
    tracker.fold(WatchEvent::Listed(ObjectKind::Service));
    assert!(!tracker.is_complete());
    tracker.fold(WatchEvent::Listed(ObjectKind::EndpointSlice));
    assert!(tracker.is_complete());
}

#[test]
fn an_identical_replay_changes_nothing() {
    let mut tracker = Tracker::default();
    tracker.fold(service("web", 1, 0));
    tracker.fold(slice("web-1", "web", 5));
    assert_eq!(names(&tracker.take_changes(IpFamily::V4)), ["shop/web"]);
    for kind in [ObjectKind::Service, ObjectKind::EndpointSlice] {
        tracker.fold(WatchEvent::Listing(kind));
    }
    tracker.fold(service("web", 1, 0));
    tracker.fold(slice("web-1", "web", 5));
    assert!(!tracker.has_changes(IpFamily::V4));
}

#[test]
fn a_relist_removes_what_it_does_not_name() {
    let mut tracker = Tracker::default();
    for name in ["a", "b"] {
        tracker.fold(service(name, 1, 0));
        tracker.fold(slice(name, name, 5));
    }
    tracker.take_changes(IpFamily::V4);
    tracker.fold(WatchEvent::Listing(ObjectKind::Service));
    tracker.fold(service("a", 1, 0));
    tracker.fold(WatchEvent::Listed(ObjectKind::Service));
    tracker.fold(WatchEvent::Listing(ObjectKind::EndpointSlice));
    tracker.fold(slice("a", "a", 5));
    tracker.fold(WatchEvent::Listed(ObjectKind::EndpointSlice));
    assert_eq!(names(&tracker.take_changes(IpFamily::V4)), ["shop/b"]);
    assert_eq!(tracker.snapshot().services.len(), 1);
    assert_eq!(tracker.endpoints(IpFamily::V4), 1);
}

#[test]
fn a_slice_that_changes_its_service_leaves_the_old_one() {
    let mut tracker = Tracker::default();
    tracker.fold(slice("s", "a", 5));
    tracker.take_changes(IpFamily::V4);
    tracker.fold(slice("s", "b", 5));
    assert_eq!(names(&tracker.take_changes(IpFamily::V4)), ["shop/a", "shop/b"]);
    assert_eq!(tracker.snapshot().services.len(), 1);
    assert_eq!(tracker.endpoints(IpFamily::V4), 1);
}

#[test]
fn trigger_times_before_the_start_and_of_removed_slices_are_not_reported() {
    let mut tracker = Tracker::new(NodeFacts::default(), 1005);
    tracker.fold(slice("early", "a", 4));
    tracker.fold(slice("late", "a", 6));
    assert_eq!(tracker.take_changes(IpFamily::V4).triggered, [1006]);
    tracker.fold(slice("late", "a", 7));
    tracker.fold(WatchEvent::SliceGone("shop/late".into()));
    assert!(tracker.take_changes(IpFamily::V4).triggered.is_empty());
}

#[test]
fn only_what_rules_depend_on_counts_as_a_change_of_our_node() {
    let mut tracker = Tracker::default();
    let mut facts = NodeFacts::default();
    let mut counts = |change: fn(&mut NodeFacts)| {
        change(&mut facts);
        tracker.fold(WatchEvent::Node(Arc::new(facts.clone())));
        let first = tracker.take_changes(IpFamily::V4).node;
        tracker.fold(WatchEvent::Node(Arc::new(facts.clone())));
        (first, tracker.has_changes(IpFamily::V4))
    };
    assert_eq!(counts(|node| node.zone = Some("z0".into())), (true, false));
    assert_eq!(counts(|node| node.addresses = ["10.0.0.1".parse().unwrap()].into()), (true, false));
    assert_eq!(counts(|node| node.addresses = ["10.0.0.2".parse().unwrap()].into()), (true, false));
    assert_eq!(counts(|node| node.pod_cidrs = ["10.1.0.0/24".parse().unwrap()].into()), (true, false));
    assert_eq!(counts(|node| (node.deleting, node.to_be_deleted) = (true, true)), (false, false));
}

#[test]
fn what_our_node_no_longer_names_stays_in_force_until_it_names_another() {
    let mut tracker = Tracker::default();
    let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
    let mut known = |texts: &[&str]| {
        let node = NodeFacts { addresses: addresses(texts).into(), ..NodeFacts::default() };
        tracker.fold(WatchEvent::Node(Arc::new(node)));
        tracker.snapshot().node.addresses.to_vec()
    };
    let both = addresses(&["10.0.0.1", "fd00::1"]);
    assert_eq!(known(&["10.0.0.1", "fd00::1"]), both);
    assert_eq!(known(&[]), both);
    assert_eq!(known(&["10.0.0.2"]), addresses(&["10.0.0.2", "fd00::1"]));
    assert_eq!(known(&["fd00::2", "10.0.0.3"]), addresses(&["fd00::2", "10.0.0.3"]));
}

#[test]
fn add_and_delete_leave_no_residue() {
    let mut tracker = Tracker::default();
    tracker.fold(service("web", 1, 30080));
    tracker.fold(slice("s", "web", 5));
    tracker.fold(WatchEvent::SliceGone("shop/s".into()));
    tracker.fold(WatchEvent::ServiceGone(ServiceName::new("shop", "web")));
    assert!(tracker.snapshot().services.is_empty());
    assert!(tracker.slice_services.is_empty());
    assert_eq!(tracker.endpoints(IpFamily::V4), 0);
    tracker.allot();
    assert!(tracker.allotment.is_empty());
}

#[test]
fn refused_endpoints_are_known_as_long_as_their_slice_has_them() {
    let refusing = |refused| {
        let WatchEvent::Slice(mut slice) = slice("web-1", "web", 5) else { unreachable!() };
        slice.refused = refused;
        WatchEvent::Slice(slice)
    };
    let known = |tracker: &Tracker| -> Vec<String> {
        let refused = tracker.refused_endpoints();
        refused.map(|(slice, service, count)| format!("{slice} of {service}: {count}")).collect()
    };
    let mut tracker = Tracker::default();
    tracker.fold(refusing(2));
    tracker.fold(slice("web-2", "web", 6));
    assert_eq!(known(&tracker), ["shop/web-1 of shop/web: 2"]);
    tracker.fold(refusing(0));
    assert!(known(&tracker).is_empty());
    tracker.fold(refusing(3));
    tracker.fold(WatchEvent::SliceGone("shop/web-1".into()));
    assert!(known(&tracker).is_empty());
}

#[test]
fn a_change_is_one_of_the_families_that_it_is_in() {
    let mut tracker = Tracker::new(NodeFacts::default(), 0);
    tracker.fold(service("v4", 1, 0));
    let WatchEvent::Service(mut dual) = service("dual", 1, 0) else { unreachable!() };
    dual.cluster_ips.v6 = Some([0xfd00, 0, 0, 0, 0, 0, 0, 1].into());
    tracker.fold(WatchEvent::Service(dual.clone()));
    let WatchEvent::Slice(mut v6) = slice("dual-6", "dual", 5) else { unreachable!() };
    v6.family = IpFamily::V6;
    tracker.fold(WatchEvent::Slice(v6));
    assert_eq!(tracker.pending(), 2);
    assert_eq!(names(&tracker.take_changes(IpFamily::V4)), ["shop/dual", "shop/v4"]);
    let changes = tracker.take_changes(IpFamily::V6);
    assert_eq!((names(&changes), &changes.triggered[..]), (vec!["shop/dual"], &[1005][..]));

    // The family that it leaves is changed, too.
    dual.cluster_ips.v4 = None;
    tracker.fold(WatchEvent::Service(dual));
    assert!(tracker.has_changes(IpFamily::V4) && tracker.has_changes(IpFamily::V6));
}

#[test]
fn of_a_family_that_is_not_served_nothing_is_kept() {
    let mut tracker = Tracker::new(NodeFacts::default(), 0);
    tracker.fold(slice("before", "web", 4));
    tracker.serve_only([IpFamily::V6].into_iter());
    tracker.fold(service("web", 1, 0));
    tracker.fold(slice("web-4", "web", 5));
    assert_eq!((tracker.pending(), tracker.take_changes(IpFamily::V4)), (0, ChangedObjects::default()));
}

#[test]
fn a_list_counts_what_it_names_and_what_it_takes_away() {
    let mut tracker = Tracker::default();
    let list = |tracker: &mut Tracker, kind, events: Vec<WatchEvent>| {
        tracker.fold(WatchEvent::Listing(kind));
        events.into_iter().for_each(|event| tracker.fold(event));
        tracker.fold(WatchEvent::Listed(kind));
        (tracker.seen().services, tracker.seen().slices.v4)
    };
    let external_name = || WatchEvent::ServiceGone(ServiceName::new("shop", "external-name"));
    // What was named before a list was cut short does not count.
    for kind in [ObjectKind::Service, ObjectKind::EndpointSlice] {
        tracker.fold(WatchEvent::Listing(kind));
    }
    tracker.fold(service("a", 1, 0));
    tracker.fold(slice("a-1", "a", 5));
    let services = vec![service("a", 1, 0), service("b", 1, 0), external_name()];
    assert_eq!(list(&mut tracker, ObjectKind::Service, services).0, 3);
    let slices = vec![slice("a-1", "a", 5), slice("b-1", "b", 6)];
    assert_eq!(list(&mut tracker, ObjectKind::EndpointSlice, slices), (3, 2));
    // Again: one changed, one gone, one the same.
    let services = vec![service("a", 1, 30080), external_name()];
    assert_eq!(list(&mut tracker, ObjectKind::Service, services), (6, 2));
    let slices = vec![slice("a-1", "a", 5), slice("b-1", "b", 7)];
    assert_eq!(list(&mut tracker, ObjectKind::EndpointSlice, slices), (6, 4));
}
