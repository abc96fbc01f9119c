//! Messages recorded from a Linux 6.1 kernel and from ipvsadm 1.31, little-endian.
#![cfg(target_endian = "little")]

/// Reads a recording: hexadecimal digits, and comments after `#`.
fn bytes(text: &str) -> Vec<u8> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .flat_map(|line| line.as_bytes().chunks(2))
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Declares a recording by the name of its file.
macro_rules! recording {
    ($($name:ident)*) => {$(
        pub(crate) fn $name() -> Vec<u8> {
            bytes(include_str!(concat!("recorded/", stringify!($name), ".hex")))
        }
    )*};
}

recording! {
    info config services dests_v4 dests_v6
    ipvsadm_service_v4 ipvsadm_service_v6 ipvsadm_dest_v4 ipvsadm_dest_v6
}

/// Every recording.
pub(crate) fn all() -> Vec<Vec<u8>> {
    vec![
        info(),
        config(),
        services(),
        dests_v4(),
        dests_v6(),
        ipvsadm_service_v4(),
        ipvsadm_service_v6(),
        ipvsadm_dest_v4(),
        ipvsadm_dest_v6(),
    ]
}
