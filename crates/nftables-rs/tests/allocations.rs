//! Writing elements allocates nothing but the one buffer.
#![allow(unsafe_code, reason = "a global allocator is an unsafe trait; this one only counts")]
#![allow(clippy::unwrap_used)]

use nftables_rs::{Batch, Element, Family, TableName, Value};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Writes 3,500 endpoints with comments; returns how many allocations it took.
fn allocations(batch: &mut Batch) -> usize {
    let table = TableName::new(Family::Ipv4, "kube-proxy");
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let mut list = batch.add_elements(table, "service-endpoints");
    for number in 0..3_500_u32 {
        let key = Value::concat(&[&[10, 96, 0, 1], &[6], &80_u16.to_be_bytes(), &number.to_ne_bytes()]);
        let endpoint = Value::concat(&[&[10, 244, 0, 1], &8080_u16.to_be_bytes()]);
        let comment = Some("shop/web:http");
        list.push(&Element { comment, ..Element::entry(key.as_bytes(), endpoint.as_bytes()) });
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[test]
fn only_the_buffer_grows_and_it_is_kept() {
    let mut batch = Batch::new();
    let grown = allocations(&mut batch);
    assert!(batch.len() > 200_000);
    assert!(grown <= 20, "{grown} allocations: the buffer doubles no more often than this");
    batch.clear();
    assert_eq!(allocations(&mut batch), 0);
}
