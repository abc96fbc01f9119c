//! What any API server does.

use crate::objects::{labelled, node, service, service_cidr, slice};
use crate::picture::{Picture, hurried};
use crate::server::Server;
use kube_proxy_rs::model::ObjectKind;
use kube_proxy_rs::testing::stub_api::Resource;
use kube_proxy_rs::watch::api::WatchOptions;

#[tokio::test]
async fn what_is_there_arrives_before_the_end_of_each_list() {
    let server = Server::start().await;
    server.put(service("web", 10)).await;
    server.put(slice("web", "10.244.0.1")).await;
    server.put(node("here")).await;
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    let expected = "service shop/web 10.96.0.10\nslice shop/web-x 10.244.0.1\nnode here in zone a\n";
    assert_eq!(picture.describe(), expected);
    picture.close().await;
}

#[tokio::test]
async fn changes_arrive_after_the_first_list() {
    let server = Server::start().await;
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.put(service("web", 10)).await;
    server.put(slice("web", "10.244.0.1")).await;
    picture.until_it_shows(&["service shop/web 10.96.0.10", "slice shop/web-x 10.244.0.1"]).await;
    server.put(slice("web", "10.244.0.2")).await;
    picture.until_it_shows(&["service shop/web 10.96.0.10", "slice shop/web-x 10.244.0.2"]).await;
    server.delete(Resource::Services, "shop/web").await;
    server.delete(Resource::EndpointSlices, "shop/web-x").await;
    picture.until_it_shows(&[]).await;
    assert!(picture.lists.values().all(|lists| *lists == 1), "no change needs another list");
}

#[tokio::test]
async fn a_service_that_gains_the_label_of_another_proxy_is_gone_until_it_loses_it() {
    let server = Server::start().await;
    server.put(service("web", 10)).await;
    let mut picture = server.watch().await;
    picture.until_it_shows(&["service shop/web 10.96.0.10"]).await;
    picture.until_listed(1).await;
    let label = "service.kubernetes.io/service-proxy-name";
    server.put(labelled(service("web", 10), label, "other")).await;
    picture.until_it_shows(&[]).await;
    server.put(service("web", 10)).await;
    picture.until_it_shows(&["service shop/web 10.96.0.10"]).await;
}

#[tokio::test]
async fn a_slice_that_becomes_headless_is_gone() {
    let server = Server::start().await;
    server.put(slice("web", "10.244.0.1")).await;
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    picture.until_it_shows(&["slice shop/web-x 10.244.0.1"]).await;
    server.put(labelled(slice("web", "10.244.0.1"), "service.kubernetes.io/headless", "")).await;
    picture.until_it_shows(&[]).await;
}

#[tokio::test]
async fn headless_services_and_their_slices_never_arrive() {
    let server = Server::start().await;
    let mut headless = service("db", 11);
    headless["spec"]["clusterIP"] = "None".into();
    headless["spec"]["clusterIPs"] = serde_json::json!(["None"]);
    server.put(headless).await;
    server.put(labelled(slice("db", "10.244.0.9"), "service.kubernetes.io/headless", "")).await;
    server.put(service("web", 10)).await;
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    assert_eq!(picture.describe(), "service shop/web 10.96.0.10\n");
    assert!(!picture.sent.contains_key("shop/db"));
}

#[tokio::test]
async fn only_our_own_node_arrives() {
    let server = Server::start().await;
    server.put(node("elsewhere")).await;
    let mut picture = server.watch().await;
    picture.until_listed(1).await;
    server.put(node("nowhere")).await;
    server.put(node("here")).await;
    picture.until_it_shows(&["node here in zone a"]).await;
    server.delete(Resource::Nodes, "elsewhere").await;
    server.delete(Resource::Nodes, "here").await;
    picture.until_it_shows(&[]).await;
    assert_eq!(picture.sent.get(""), Some(&1));
    assert_eq!(picture.lists[&ObjectKind::Node], 1);
}

#[tokio::test]
async fn service_cidrs_come_and_go_where_they_are_asked_for() {
    let server = Server::start().await;
    server.put(service_cidr("more", "10.112.0.0/16")).await;
    let options = WatchOptions { service_cidrs: true, ..hurried() };
    let mut picture = Picture::watch(&server.kubeconfig(), options).await;
    let shows = |line: &'static str| move |picture: &Picture| picture.describe().contains(line);
    picture.until("it is listed", shows("servicecidr more 10.112.0.0/16")).await;
    server.put(service_cidr("later", "10.113.0.0/16")).await;
    picture.until("another one is told of", shows("servicecidr later 10.113.0.0/16")).await;
    server.delete(Resource::ServiceCidrs, "more").await;
    picture.until("the first is gone", |picture| !picture.describe().contains("servicecidr more")).await;
    assert!(shows("servicecidr later")(&picture));
}
