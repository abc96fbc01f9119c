//! What the kernel knows of the terminal that stdout is.
#![allow(unsafe_code, reason = "an ioctl that writes into a structure")]

use std::os::fd::AsRawFd;

mod raw {
    nix::ioctl_read_bad!(
        /// `ioctl_tty(2)`: the size of a terminal's window.
        window_size,
        nix::libc::TIOCGWINSZ,
        nix::libc::winsize
    );
}

/// Its width in characters; `None` where stdout is no terminal, or one that does not know.
#[must_use]
pub fn columns() -> Option<usize> {
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open, and the kernel writes into `size` only.
    let found = unsafe { raw::window_size(std::io::stdout().as_raw_fd(), &raw mut size) };
    found.ok().map(|_| usize::from(size.ws_col)).filter(|columns| *columns > 0)
}
