//! The table is owned by the process that runs.

use super::*;
use crate::backend::nftables::mode::remove_table;
use crate::backend::nftables::ownership::OWNED;
use crate::backend::nftables::probe;
use nftables_rs::TableFlags;

fn features(owns_table: bool) -> Features {
    Features { masquerade_mark: 0x4000, owns_table, ..Features::default() }
}

/// A process that owns its table, or does not, over Services.
fn bench(owns_table: bool) -> Bench {
    let mut bench = Bench::with(IpFamily::V4, features(owns_table));
    bench.fold(&mut Generator::new(5), 40);
    bench
}

/// The flags of the table, and the port of its owner.
fn table_flags() -> Option<(TableFlags, Option<u32>)> {
    let mut found = None;
    let mut nft = nftables_rs::Nftables::open().unwrap();
    nft.tables(None, &mut |part| {
        if let Listed::Item(listed) = part {
            found = Some((listed.table.flags, listed.owner));
        }
    })
    .unwrap();
    found
}

/// Runs a test in a fresh network namespace, where the kernel has such tables.
fn live_owned(test: impl AsyncFnOnce() + Send) {
    live(async || match probe::owned_table() {
        Ok(_) => test().await,
        Err(error) => assert!(error.to_string().contains("Linux 6.9"), "{error:#}"),
    });
}

/// What nft is answered.
fn refused(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    assert!(!output.status.success(), "nft {arguments:?} works");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn nobody_else_changes_it_and_the_next_process_adopts_it_as_it_is() {
    live_owned(async || {
        let mut bench = bench(true);
        bench.sync().await;
        let (table, port) = (bench.table(), bench.backend.kernel().port());
        assert_eq!(table_flags(), Some((OWNED, Some(port))));
        for arguments in
            [["delete", "table", "ip", "kube-proxy"], ["flush", "chain", "ip", "kube-proxy services"]]
        {
            assert!(refused(&arguments).contains("not permitted"), "{arguments:?}");
        }
        nft(&["flush", "ruleset"]);
        assert_eq!(bench.verify(VerifyDepth::Thorough).await, [""; 0]);
        assert_same(&bench.table(), &table, "after a flush");

        let mut next = bench.restarted();
        assert_eq!(table_flags(), Some((TableFlags::PERSIST, None)), "its owner is gone");
        assert!(next.backend.holds_services().await.unwrap());
        let generation = next.backend.kernel().generation().unwrap();
        next.sync().await;
        assert_eq!(next.backend.kernel().generation().unwrap(), generation.next(), "only adopted");
        assert_eq!(table_flags(), Some((OWNED, Some(next.backend.kernel().port()))));
        assert_same(&next.table(), &table, "adopted");
    });
}

#[test]
fn it_is_replaced_at_once_when_the_option_comes_or_goes() {
    live_owned(async || {
        let mut first = bench(false);
        first.sync().await;
        let table = first.table();
        for owns_table in [true, false] {
            let mut next = first.restarted_with(features(owns_table));
            let applied = next.sync().await;
            assert_eq!(applied.calls, 1, "there is no moment with half a table");
            let flags = if owns_table { OWNED } else { TableFlags::NONE };
            assert_eq!(table_flags().unwrap().0, flags);
            assert_same(&next.table(), &table, "replaced");
            assert_eq!(next.sync().await.calls, 0);
            first = next;
        }
        nft(&["add", "table", "ip", "kube-proxy"]);
    });
}

#[test]
fn the_table_of_kube_proxy_is_replaced_by_one_of_ours() {
    let file = "/e2e/fixtures/expected/nftables/load-balancer-source-ranges.ip.nft";
    live_owned(async || {
        nft(&["-f", &format!("{}{file}", env!("CARGO_MANIFEST_DIR"))]);
        let mut bench = bench(true);
        bench.sync().await;
        assert_eq!(table_flags().unwrap().0, OWNED);
        assert_same(&bench.table(), &bench.fresh_table(), "replaced");
    });
}

#[test]
fn what_another_process_owns_is_left_alone_and_its_owner_is_named() {
    live_owned(async || {
        let mut owner = bench(true);
        owner.sync().await;
        let port = owner.backend.kernel().port();
        let words = format!("netlink port {port}), and no other one can change or delete it");
        for owns_table in [false, true] {
            let mut other = bench(owns_table);
            let error = pass::run(&mut other.tracker, &other.settings, &mut other.backend).await.unwrap_err();
            assert!(format!("{error:#}").contains(&words), "{error:#}");
        }
        let removed = remove_table(IpFamily::V4).unwrap_err();
        assert!(format!("{removed:#}").contains(&words), "{removed:#}");
        owner.end();
        assert!(remove_table(IpFamily::V4).unwrap(), "it has no owner any more");
    });
}
