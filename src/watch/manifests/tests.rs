//! Tests of reading manifests; `live` has those of watching them.

use super::*;
use crate::model::{EndpointSlice, Protocol, Service, TrafficPolicy};
use rstest::rstest;
use std::fs;
use tempfile::TempDir;

#[path = "tests_live.rs"]
mod live;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.0.0.1
  ports: [{name: http, port: 80}]
";

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.1.0.1], nodeName: here}]
";

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: here, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}
";

fn options() -> ManifestOptions {
    ManifestOptions { node_name: "here".into(), ..ManifestOptions::default() }
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

/// What a folder with these files holds, and what is wrong with it, without the folder's name.
fn load_files(files: &[(&str, &str)]) -> (Vec<WatchEvent>, Vec<String>) {
    let folder = folder(files);
    let (events, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    (events, texts(&errors, folder.path()))
}

fn texts(errors: &[ManifestError], folder: &Path) -> Vec<String> {
    let prefix = format!("{}/", folder.display());
    errors.iter().map(|error| error.to_string().replace(&prefix, "")).collect()
}

/// Everything that is wrong with this one file.
fn errors_of(text: &str) -> Vec<String> {
    load_files(&[("shop.yaml", text)]).1
}

fn services(events: &[WatchEvent]) -> Vec<&Service> {
    events
        .iter()
        .filter_map(|e| if let WatchEvent::Service(service) = e { Some(&**service) } else { None })
        .collect()
}

fn slices(events: &[WatchEvent]) -> Vec<&EndpointSlice> {
    events
        .iter()
        .filter_map(|e| if let WatchEvent::Slice(slice) = e { Some(&**slice) } else { None })
        .collect()
}

fn names(events: &[WatchEvent]) -> Vec<String> {
    services(events).iter().map(|service| service.name.to_string()).collect()
}

/// The Service of these lines of `spec`, on top of a cluster IP.
fn service_with(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  clusterIP: 10.0.0.1\n{spec}"
    )
}

fn documents(documents: &[&str]) -> String {
    documents.join("\n---\n")
}

#[test]
fn services_slices_and_our_node_come_as_complete_lists() {
    let other_node = NODE.replace("name: here", "name: there");
    let text = documents(&[SLICE, &other_node, SERVICE, NODE]);
    let (events, errors) = load_files(&[("shop.yaml", &text)]);
    assert_eq!(errors, [""; 0]);
    let shape: Vec<String> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Listing(kind) => format!("listing {kind:?}"),
            WatchEvent::Listed(kind) => format!("listed {kind:?}"),
            WatchEvent::Service(service) => service.name.to_string(),
            WatchEvent::Slice(slice) => slice.name.to_string(),
            WatchEvent::Node(node) => node.name.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        shape,
        [
            "listing Node",
            "here",
            "listed Node",
            "listing Service",
            "shop/web",
            "listed Service",
            "listing EndpointSlice",
            "shop/web-1",
            "listed EndpointSlice",
        ]
    );
    assert!(slices(&events)[0].endpoints[0].facts.local());
}

#[test]
fn defaults_are_those_of_the_api_server() {
    let (events, errors) = load_files(&[(
        "a.yaml",
        "{apiVersion: v1, kind: Service, metadata: {name: web},
          spec: {clusterIPs: [2001:db8::1, 10.0.0.1], sessionAffinity: ClientIP, ports: [{port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv6,
 metadata: {name: web-1, labels: {kubernetes.io/service-name: web}},
 ports: [{port: 8080}], endpoints: [{addresses: [2001:db8:1::1]}]}",
    )]);
    assert_eq!(errors, [""; 0]);
    let service = services(&events)[0];
    assert_eq!(service.name.as_str(), "default/web");
    assert_eq!(service.affinity_seconds, Some(10_800));
    assert!(service.cluster_ips.v4.is_some() && service.cluster_ips.v6.is_some());
    assert_eq!((&*service.ports[0].name, service.ports[0].protocol), ("", Protocol::Tcp));
    let slice = slices(&events)[0];
    assert_eq!(slice.service, service.name);
    assert_eq!((&*slice.ports[0].name, slice.ports[0].protocol), ("", Protocol::Tcp));
}

#[test]
fn json_is_read_as_well_as_yaml() {
    let json = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "NAME"},
                   "spec": {"clusterIP": "10.0.0.9", "ports": [{"port": 80, "targetPort": "x"}]}}"#;
    let (one, two) = (json.replace("NAME", "one"), json.replace("NAME", "two"));
    let both = format!("{one}\n{two}\n");
    let (events, errors) = load_files(&[("a.json", &both), ("b.yaml", &json.replace("NAME", "three"))]);
    assert_eq!(errors, [""; 0]);
    assert_eq!(names(&events), ["default/one", "default/two", "default/three"]);
}

#[rstest]
#[case::plain("List", "apiVersion: v1, kind: Service, ")]
#[case::typed("ServiceList", "")]
fn lists_are_read_item_by_item(#[case] kind: &str, #[case] type_fields: &str) {
    let item = |name: &str, ip: &str| {
        format!(
            "- {{{type_fields}metadata: {{name: {name}}}, spec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}}}\n"
        )
    };
    let text = format!(
        "apiVersion: v1\nitems:\n{}{}{}kind: {kind}\nmetadata: {{resourceVersion: ''}}\n",
        item("one", "10.0.0.1"),
        item("two", "10.0.0.300"),
        item("three", "10.0.0.3")
    );
    let (events, errors) = load_files(&[("a.yaml", &text)]);
    assert_eq!(names(&events), ["default/one", "default/three"]);
    assert_eq!(
        errors,
        [
            r#"a.yaml: document 1: items[1]: Service default/two: spec.clusterIP: "10.0.0.300" is not an IP address"#
        ]
    );
}

#[test]
fn other_kinds_are_skipped_whatever_their_fields_look_like() {
    let others = [
        "{apiVersion: apps/v1, kind: Deployment, metadata: {name: a}, spec: {ports: seven}}",
        "{apiVersion: serving.knative.dev/v1, kind: Service, metadata: 1, spec: [], ports: {}}",
        "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice, addressType: 5}",
    ];
    let folder = folder(&[("a.yaml", &documents(&[others[0], others[1], others[0], others[2], SERVICE]))]);
    let update = Catalog::new(vec![folder.path().to_owned()], options()).update();
    assert_eq!(update.errors, []);
    assert_eq!(update.events.len(), 1);
    assert_eq!(
        update.skipped,
        ["apps/v1 Deployment", "discovery.k8s.io/v1beta1 EndpointSlice", "serving.knative.dev/v1 Service"]
    );
}

#[test]
fn only_manifests_of_a_folder_are_read_and_in_the_order_of_their_names() {
    let named = |name: &str| SERVICE.replace("name: web", &format!("name: {name}"));
    let folder = folder(&[
        ("c.yml", &named("c")),
        ("a.yaml", &named("a")),
        ("b.json", r#"{"apiVersion": "v1", "kind": "Secret"}"#),
        (".hidden.yaml", "]"),
        ("README.md", "]"),
        ("a.yaml~", "]"),
    ]);
    fs::create_dir(folder.path().join("folder.yaml")).unwrap();
    let (events, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    assert_eq!((names(&events), errors), (vec!["shop/a".to_owned(), "shop/c".to_owned()], vec![]));
}

#[test]
fn paths_may_be_files_of_any_name_and_count_once() {
    let folder = folder(&[("services", SERVICE), ("more.yaml", SLICE)]);
    let paths = [folder.path().join("services"), folder.path().join("more.yaml"), folder.path().to_owned()];
    let (events, errors) = load(&paths, &options()).unwrap();
    assert_eq!(errors, []);
    assert_eq!((services(&events).len(), slices(&events).len()), (1, 1));
}

#[test]
fn an_empty_folder_is_fine() {
    let (events, errors) = load_files(&[]);
    assert_eq!((events.len(), errors.len()), (6, 0));
}

#[test]
fn empty_documents_and_comments_are_fine() {
    let text = format!("# of the shop\n\n---\n# nothing\n---\n---{}---\nnull\n...\n", SERVICE);
    let (events, errors) = load_files(&[("a.yaml", &text), ("b.yaml", ""), ("c.json", " \n")]);
    assert_eq!((names(&events).len(), errors), (1, vec![]));
}

#[test]
fn paths_that_do_not_exist_are_all_named() {
    let folder = folder(&[]);
    let missing = [folder.path().join("one"), folder.path().to_owned(), folder.path().join("two")];
    let text = load(&missing, &options()).unwrap_err().to_string();
    assert!(text.contains("one: No such file") && text.contains("two: No such file"), "{text}");
}

#[test]
fn broken_yaml_is_told_with_document_and_line_and_hides_nothing() {
    let text =
        format!("{SERVICE}---\nkind: [Service\nspec: {{\n---\n{}---\nkind: 'x\n", SLICE.replace("8080", "0"));
    let (events, errors) = load_files(&[("shop.yaml", &text)]);
    assert_eq!(names(&events), ["shop/web"]);
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(errors[0].starts_with("shop.yaml: document 2: line 1"), "{}", errors[0]);
    assert_eq!(
        errors[1],
        "shop.yaml: document 3: EndpointSlice shop/web-1: ports[0].port: 0 is not a port; ports are 1 to 65535"
    );
    assert!(errors[2].starts_with("shop.yaml: document 4: line 2"), "{}", errors[2]);
    assert!(errors.iter().all(|error| !error.contains('\n')), "{errors:#?}");
}

#[test]
fn broken_json_is_told_with_its_line() {
    let (_, errors) = load_files(&[("a.json", "{\"kind\": \"Service\",\n \"spec\": }")]);
    assert_eq!(errors, ["a.json: document 1: line 2: expected value"]);
}

#[rstest]
#[case::scalar("hello", "shop.yaml: document 1: line 1: ")]
#[case::sequence("- a", "shop.yaml: document 1: line 1: ")]
#[case::twice_a_key("kind: a\nkind: b", "shop.yaml: document 1: line 2: ")]
#[case::no_kind("metadata: {name: a}", "shop.yaml: document 1: object default/a: kind: is missing")]
#[case::no_version(
    "kind: Service\nmetadata: {name: a}",
    "shop.yaml: document 1: Service default/a: apiVersion: is missing"
)]
fn what_is_not_an_object_is_told(#[case] text: &str, #[case] error: &str) {
    let errors = errors_of(text);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].starts_with(error), "{}", errors[0]);
}

#[test]
fn text_that_is_not_utf8_is_told_with_its_line() {
    let folder = folder(&[]);
    fs::write(folder.path().join("a.yaml"), b"kind: Service\nname: \xff\n").unwrap();
    let (_, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    assert_eq!(texts(&errors, folder.path()), ["a.yaml: line 2: is not UTF-8 text"]);
}

#[test]
fn a_value_of_the_wrong_type_is_told_with_its_path() {
    let errors = errors_of(&service_with("  ports: [{name: a, port: 80}, {name: b, port: '81'}]"));
    assert_eq!(
        errors,
        [
            r#"shop.yaml: document 1: Service shop/web: spec.ports[1].port: invalid type: string "81", expected i64"#
        ]
    );
}

/// The fields at fault; each must come as an error of this one object.
fn faulty_fields(text: &str) -> Vec<String> {
    let (events, errors) = load_files(&[("shop.yaml", text)]);
    assert!(services(&events).is_empty() && slices(&events).is_empty());
    let prefix = "shop.yaml: document 1: ";
    let field = |error: &String| -> String {
        let rest = error.strip_prefix(prefix).unwrap_or_else(|| panic!("{error}"));
        rest.split(": ").nth(1).unwrap().to_owned()
    };
    errors.iter().map(field).collect()
}

#[rstest]
#[case::bad_ip("  externalIPs: [10.0.0.300]\n  ports: [{port: 80}]", &["spec.externalIPs[0]"])]
#[case::blank_ip("  externalIPs: ['']\n  ports: [{port: 80}]", &["spec.externalIPs[0]"])]
#[case::port_zero("  ports: [{port: 0}]", &["spec.ports[0].port"])]
#[case::no_port("  ports: [{name: a}]", &["spec.ports[0].port"])]
#[case::large_port("  ports: [{port: 65536}]", &["spec.ports[0].port"])]
#[case::no_ports("  ports: []", &["spec.ports"])]
#[case::protocol("  ports: [{port: 80, protocol: QUIC}]", &["spec.ports[0].protocol"])]
#[case::same_name("  ports: [{name: a, port: 80}, {name: a, port: 81}]", &["spec.ports[1].name"])]
#[case::no_names("  ports: [{name: a, port: 80}, {port: 81}]", &["spec.ports[1].name"])]
#[case::same_port("  ports: [{name: a, port: 80}, {name: b, port: 80}]", &["spec.ports[1].port"])]
#[case::same_node_port(
    "  type: NodePort\n  ports: [{name: a, port: 80, nodePort: 30080}, {name: b, port: 81, nodePort: 30080}]",
    &["spec.ports[1].nodePort"])]
#[case::other_cluster_ips("  clusterIPs: [10.0.0.2]\n  ports: [{port: 80}]", &["spec.clusterIPs[0]"])]
#[case::family("  ipFamilies: [IPv6]\n  ports: [{port: 80}]", &["spec.clusterIPs[0]"])]
#[case::families("  ipFamilies: [IPv4, IPv4]\n  ports: [{port: 80}]", &["spec.ipFamilies[1]"])]
#[case::timeout(
    "  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}\n  ports: [{port: 80}]",
    &["spec.sessionAffinityConfig.clientIP.timeoutSeconds"])]
#[case::range("  loadBalancerSourceRanges: [10.0.0.0/33]\n  ports: [{port: 80}]", &["spec.loadBalancerSourceRanges[0]"])]
#[case::policy("  internalTrafficPolicy: local\n  ports: [{port: 80}]", &["spec.internalTrafficPolicy"])]
#[case::service_type("  type: Nodeport\n  ports: [{port: 80}]", &["spec.type"])]
#[case::all_together(
    "  externalIPs: [x]\n  internalTrafficPolicy: any\n  ports: [{port: 0}]",
    &["spec.ports[0].port", "spec.internalTrafficPolicy", "spec.externalIPs[0]"])]
fn a_service_that_the_api_server_would_refuse_is_refused(#[case] spec: &str, #[case] fields: &[&str]) {
    assert_eq!(faulty_fields(&service_with(spec)), fields);
}

#[test]
fn a_bad_address_is_told_in_full() {
    let errors =
        errors_of(&documents(&[SLICE, &service_with("  externalIPs: [10.0.0.300]\n  ports: [{port: 80}]")]));
    assert_eq!(
        errors,
        [
            r#"shop.yaml: document 2: Service shop/web: spec.externalIPs[0]: "10.0.0.300" is not an IP address"#
        ]
    );
}

#[test]
fn protocols_share_a_port_number() {
    let text = service_with("  ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}]");
    assert_eq!(errors_of(&text), [""; 0]);
}

#[test]
fn a_name_of_three_hundred_characters_is_refused_in_bearable_words() {
    let long = "a".repeat(300);
    for text in [SERVICE.replace("name: web,", &format!("name: {long},")), SLICE.replace("web-1", &long)] {
        assert_eq!(faulty_fields(&text), ["metadata.name"]);
        assert!(errors_of(&text)[0].len() < 400);
    }
}

#[rstest]
#[case::bad_ip(("10.1.0.1]", "10.1.0.300]"), &["endpoints[0].addresses[0]"])]
#[case::bad_second_ip(("10.1.0.1]", "10.1.0.1, x]"), &["endpoints[0].addresses[1]"])]
#[case::wrong_family(("10.1.0.1]", "2001:db8::1]"), &["endpoints[0].addresses[0]"])]
#[case::no_address(("[10.1.0.1]", "[]"), &["endpoints[0].addresses"])]
#[case::port(("8080", "80800"), &["ports[0].port"])]
#[case::same_port_name(("}]\nend", "}, {name: http, port: 1}]\nend"), &["ports[1].name"])]
#[case::address_type(("IPv4", "IPv5"), &["addressType"])]
#[case::service_name(("service-name: web", "service-name: We_b"), &["metadata.labels[kubernetes.io/service-name]"])]
fn a_slice_that_the_api_server_would_refuse_is_refused(
    #[case] change: (&str, &str),
    #[case] fields: &[&str],
) {
    assert_eq!(faulty_fields(&SLICE.replace(change.0, change.1)), fields);
}

/// What an API server may have let pass comes to the same from a file: told, and used as far as it goes.
#[rstest]
#[case::node_port(
    service_with(
        "  type: NodePort\n  ports: [{name: a, port: 80, nodePort: 80}, {name: b, port: 81, nodePort: 30081}]"
    ),
    "Service shop/web: spec.ports[0].nodePort: 80 is outside --service-node-port-range and is used all the same"
)]
#[case::external_ip_of_the_other_family(
    service_with("  externalIPs: [203.0.113.1, '2001:db8::1']\n  ports: [{port: 80}]"),
    "Service shop/web: spec.externalIPs[1]: 2001:db8::1 is an IPv6 address; the Service has none"
)]
#[case::link_local_endpoint(
    SLICE.replace("10.1.0.1]", "169.254.0.1]"),
    "EndpointSlice shop/web-1: endpoints[0].addresses[0]: 169.254.0.1 is a link-local address; the endpoint is not used")]
#[case::loopback_endpoint(
    SLICE.replace("10.1.0.1]", "127.0.0.1]"),
    "EndpointSlice shop/web-1: endpoints[0].addresses[0]: 127.0.0.1 is a loopback address; the endpoint is not used")]
fn what_is_doubtful_is_told_and_its_object_stays(#[case] text: String, #[case] problem: &str) {
    let folder = folder(&[("shop.yaml", &text)]);
    let (events, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    assert_eq!(texts(&errors, folder.path()), [format!("shop.yaml: document 1: {problem}")]);
    assert_eq!(errors[0].severity, IssueSeverity::Warning);
    assert_eq!(services(&events).len() + slices(&events).len(), 1);
    assert!(slices(&events).iter().all(|slice| (slice.refused, slice.endpoints.len()) == (1, 0)));
}

#[test]
fn the_node_port_range_can_be_another() {
    let folder =
        folder(&[("a.yaml", &service_with("  type: NodePort\n  ports: [{port: 80, nodePort: 80}]"))]);
    let options = ManifestOptions { node_port_range: 80..=90, ..options() };
    let (events, errors) = load(&[folder.path().to_owned()], &options).unwrap();
    assert_eq!((services(&events)[0].ports[0].node_port, errors), (80, vec![]));
}

#[test]
fn fields_without_effect_are_told_and_do_no_harm() {
    let text =
        service_with("  externalTrafficPolicy: Local\n  healthCheckNodePort: 31000\n  ports: [{port: 80}]");
    let folder = folder(&[("a.yaml", &text)]);
    let (events, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    assert_eq!(services(&events)[0].external, None);
    let found: Vec<_> = errors.iter().map(|e| (e.field.as_deref().unwrap(), e.severity)).collect();
    assert_eq!(
        found,
        [
            ("spec.externalTrafficPolicy", IssueSeverity::Warning),
            ("spec.healthCheckNodePort", IssueSeverity::Warning)
        ]
    );
}

#[test]
fn a_service_without_a_cluster_ip_gets_a_warning_since_nothing_allocates_one() {
    let text = SERVICE.replace("  clusterIP: 10.0.0.1\n", "");
    let errors = errors_of(&text);
    assert_eq!(errors.len(), 1);
    assert!(errors[0].contains("spec.clusterIP: is missing"), "{}", errors[0]);
}

#[test]
fn headless_services_and_their_slices_are_silently_nothing() {
    let headless = SERVICE.replace("10.0.0.1", "None");
    let slice = SLICE.replace("labels: {", "labels: {service.kubernetes.io/headless: '', ");
    let (events, errors) = load_files(&[("a.yaml", &documents(&[&headless, &slice]))]);
    assert_eq!((events.len(), errors), (6, vec![]));
}

#[test]
fn an_object_twice_in_a_file_is_told() {
    let (events, errors) = load_files(&[("a.yaml", &documents(&[SERVICE, &SERVICE.replace("80", "81")]))]);
    assert_eq!(services(&events)[0].ports[0].port, 80);
    assert_eq!(errors, ["a.yaml: document 2: Service shop/web: metadata.name: is there twice in this file"]);
}

#[test]
fn of_an_object_in_two_files_the_first_file_wins() {
    let other = documents(&[SLICE, &SERVICE.replace("80", "81")]);
    let (events, errors) = load_files(&[("a.yaml", SERVICE), ("b.yaml", &other)]);
    assert_eq!(services(&events).len(), 1);
    assert_eq!(services(&events)[0].ports[0].port, 80);
    assert_eq!(slices(&events).len(), 1);
    assert_eq!(errors, ["b.yaml: document 2: Service shop/web: is already in a.yaml, which comes first"]);
}

#[test]
fn many_objects_in_two_files_are_told_in_few_words() {
    let many: Vec<String> =
        (0..150).map(|n| SERVICE.replace("name: web", &format!("name: web-{n}"))).collect();
    let text = many.join("---");
    let (events, errors) = load_files(&[("a.yaml", &text), ("b.yaml", &text)]);
    assert_eq!((services(&events).len(), errors.len()), (150, 101));
    assert_eq!(errors[100], "b.yaml: 50 more objects are in other files");
}

#[test]
fn a_first_reading_uses_the_good_objects_of_a_bad_file() {
    let text = documents(&[SERVICE, &SLICE.replace("10.1.0.1", "x"), NODE, "{"]);
    let (events, errors) = load_files(&[("a.yaml", &text)]);
    assert_eq!((names(&events).len(), errors.len()), (1, 2));
    assert!(events.iter().any(|event| matches!(event, WatchEvent::Node(_))));
}

#[test]
fn a_flood_of_errors_is_cut() {
    let bad: Vec<String> = (0..150).map(|n| format!("{{kind: Bad{n}}}")).collect();
    let errors = errors_of(&bad.join("\n---\n"));
    assert_eq!(errors.len(), 101);
    assert_eq!(errors[100], "shop.yaml: 50 more problems are not shown");
}

#[test]
fn a_huge_value_does_not_make_a_huge_message() {
    let errors = errors_of(&service_with(&format!("  ports: {}", "x".repeat(10_000))));
    assert_eq!(errors.len(), 1);
    assert!(errors[0].len() < 500 && errors[0].contains("spec.ports"), "{}", errors[0]);
}

#[test]
fn aliases_cannot_make_a_short_text_a_long_one() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (from, to) in ('a'..='h').zip('b'..='i') {
        text += &format!("{to}: &{to} [{}]\n", vec![format!("*{from}"); 10].join(", "));
    }
    let errors = errors_of(&text);
    assert_eq!(errors.len(), 1, "{errors:#?}");
}

#[test]
fn a_file_beyond_the_limit_is_refused() {
    let folder = folder(&[("a.yaml", SERVICE)]);
    let large = fs::File::create(folder.path().join("b.yaml")).unwrap();
    large.set_len(64 * 1024 * 1024 + 1).unwrap();
    let (events, errors) = load(&[folder.path().to_owned()], &options()).unwrap();
    assert_eq!(services(&events).len(), 1);
    assert!(errors[0].message.contains("is larger than"), "{}", errors[0]);
}

#[test]
fn policies_and_node_facts_come_through() {
    let text = documents(&[
        &service_with(
            "  type: NodePort\n  externalTrafficPolicy: Local\n  ports: [{port: 80, nodePort: 30080}]",
        ),
        NODE,
    ]);
    let (events, errors) = load_files(&[("a.yaml", &text)]);
    assert_eq!(errors, [""; 0]);
    let external = services(&events)[0].external.as_ref().unwrap();
    assert_eq!(external.traffic_policy, TrafficPolicy::Local);
    let node = events.iter().find_map(|e| if let WatchEvent::Node(node) = e { Some(node) } else { None });
    assert_eq!(node.unwrap().zone.as_deref(), Some("a"));
}

proptest::proptest! {
    #[test]
    fn no_text_is_too_strange(
        cut in 0usize..600,
        length in 0usize..40,
        insert in "[-:{}\\[\\]&*!|>'\"%@`#,? \n\ta-z0-9]{0,12}",
        is_json: bool,
    ) {
        let text = if is_json {
            r#"{"apiVersion": "v1", "kind": "List", "items": [{"kind": "Node", "metadata": {"name": "a"}}, null]}"#
                .to_owned()
        } else {
            documents(&[SERVICE, SLICE, NODE])
        };
        let start = cut.min(text.len());
        let end = (start + length).min(text.len());
        let text = format!("{}{insert}{}", &text[..start], &text[end..]);
        let file: Arc<Path> = Path::new(if is_json { "a.json" } else { "a.yaml" }).into();
        let content = file::parse(&file, &text, &options());
        let is_whole = content.unreadable.is_none() && content.broken.is_empty();
        proptest::prop_assert!(is_whole || !content.errors.is_empty());
    }
}

#[test]
fn files_beyond_the_limits_of_the_library_are_read() {
    // The library's own limits would stop at a thousand documents, or a quarter of a million nodes.
    let service = |n: u32| {
        let (a, b) = (n / 250, n % 250);
        format!(
            "- {{apiVersion: v1, kind: Service, metadata: {{name: web-{n}}}, spec: {{clusterIP: 10.1.{a}.{b}, ports: [{{port: 80}}]}}}}\n"
        )
    };
    let list: String = (0..14_000).map(service).collect();
    let documents: String = (14_000..15_500).map(|n| service(n).replacen("- ", "---\n", 1)).collect();
    let text = format!("apiVersion: v1\nkind: List\nitems:\n{list}{documents}");
    let (events, errors) = load_files(&[("a.yaml", &text)]);
    assert_eq!((services(&events).len(), errors), (15_500, vec![]));
}
