//! How our process asks the kernel for memory and gives it back.
#![allow(unsafe_code)] // No crate wraps mallopt and MADV_PAGEOUT; see the blocks below.

use anyhow::{Context, Result};
use std::ops::Range;
use std::{fs, io};

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

/// Gives back the pages of the program file that are in memory now: most of them are code that only
/// the start needed. What is needed again comes back from the file by itself.
///
/// # Errors
/// When our mappings cannot be read, or the kernel (before 5.4) does not know the request.
pub fn give_back_code() -> Result<()> {
    let program = fs::read_link("/proc/self/exe").context("cannot read /proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps").context("cannot read /proc/self/maps")?;
    for Range { start, end } in code(&maps, &program.to_string_lossy()) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a mapping of ours that is only read; the kernel reads its pages again
        // from the file when they are used.
        let refused = unsafe { libc::madvise(address, end - start, libc::MADV_PAGEOUT) };
        if refused != 0 {
            return Err(io::Error::last_os_error()).context("MADV_PAGEOUT");
        }
    }
    Ok(())
}

/// Where `/proc/self/maps` has a file that is not written to.
fn code<'a>(maps: &'a str, file: &'a str) -> impl Iterator<Item = Range<usize>> + 'a {
    maps.lines().filter_map(move |line| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        if !line.ends_with(file) || rights.contains('w') {
            return None;
        }
        let (start, end) = range.split_once('-')?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
        1000-3000 r--p 00000000 fe:01 77  /bin/proxy\n\
        3000-9000 r-xp 00002000 fe:01 77  /bin/proxy\n\
        9000-a000 rw-p 00008000 fe:01 77  /bin/proxy\n\
        b000-c000 rw-p 00000000 00:00 0   [heap]\n\
        d000-e000 r-xp 00000000 fe:01 78  /lib/libc.so.6\n";

    #[test]
    fn what_is_written_to_or_shared_with_others_is_kept() {
        let found: Vec<_> = code(MAPS, "/bin/proxy").collect();
        assert_eq!(found, [0x1000..0x3000, 0x3000..0x9000]);
    }

    #[test]
    fn the_program_goes_on_without_its_code_in_memory() {
        give_back_code().unwrap();
        assert_eq!(code(MAPS, "/lib/libc.so.6").count(), 1);
    }
}
