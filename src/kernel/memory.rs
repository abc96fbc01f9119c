//! How our process asks the kernel for memory and gives it back.
#![allow(unsafe_code)] // No crate wraps mallopt; see the one block below.

/// What is freed in pieces of this size goes back to the kernel at once.
#[cfg(target_env = "gnu")]
const GIVE_BACK: libc::c_int = 64 * 1024;

/// Makes the C library's allocator keep little in reserve: a large first list and the first sync
/// are read once, and what they took is better given back than kept. Call it before any thread
/// is started. Other allocators are left alone.
pub fn keep_little() {
    // SAFETY: mallopt takes two numbers, and no other thread runs yet.
    #[cfg(target_env = "gnu")]
    unsafe {
        // Refusals leave the defaults in place, which cost some megabytes and nothing else.
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, GIVE_BACK);
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVE_BACK);
    }
}
