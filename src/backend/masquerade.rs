//! The rules that masquerade what is marked for it, the same in every mode.

use super::lines::{Text, line};

/// Masquerades what is marked.
pub(super) const POSTROUTING: &str = "KUBE-POSTROUTING";
/// Marks what has to be masqueraded.
pub(super) const MARK_MASQ: &str = "KUBE-MARK-MASQ";

/// A mark's bit as rules spell it.
pub(super) fn mark(mask: u32) -> String {
    format!("0x{mask:08x}")
}

/// Writes both chains' rules.
pub(super) fn write(text: &mut Text, mask: u32, random_fully: bool) {
    let mark = mark(mask);
    let fully = if random_fully { " --random-fully" } else { "" };
    line!(text, "-A {POSTROUTING} -m mark ! --mark {mark}/{mark} -j RETURN");
    // Unmarked, so that a second walk of POSTROUTING (encapsulation) does not masquerade again.
    line!(text, "-A {POSTROUTING} -j MARK --xor-mark {mark}");
    line!(
        text,
        "-A {POSTROUTING} -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE{fully}"
    );
    line!(text, "-A {MARK_MASQ} -j MARK --or-mark {mark}");
}
