//! Registers: what expressions hand each other.

/// The first of the 128-bit registers of old (`NFT_REG_1`), and of those of 32 bits (`NFT_REG32_00`).
const FIRST_OF_FOUR_WORDS: u32 = 1;
const FIRST_WORD: u32 = 8;
const WORDS: u8 = 16;

/// A register: one of sixteen words of 32 bits, where a value starts. Longer values go on in the words that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(u8);

impl Register {
    /// The verdict, which ends the rule; only verdict maps lead here.
    pub const VERDICT: Register = Register(u8::MAX);

    /// The word with this number, from 0 to 15. The kernel refuses other numbers.
    #[must_use]
    pub const fn word(number: u8) -> Register {
        Register(number)
    }

    /// Where it begins, in bytes, among all words.
    #[must_use]
    pub const fn offset(self) -> usize {
        self.0 as usize * 4
    }

    /// As nft writes it: by its old number where it has one.
    pub(crate) fn number(self) -> u32 {
        let word = u32::from(self.0);
        match self {
            Register::VERDICT => 0,
            _ if self.0 < WORDS && word.is_multiple_of(4) => FIRST_OF_FOUR_WORDS + word / 4,
            _ => FIRST_WORD + word,
        }
    }

    pub(crate) fn of(number: u32) -> Option<Register> {
        let word = match number {
            0 => return Some(Register::VERDICT),
            1..=4 => (number - FIRST_OF_FOUR_WORDS) * 4,
            _ => number.checked_sub(FIRST_WORD)?,
        };
        u8::try_from(word).ok().filter(|word| *word < WORDS).map(Register)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_have_the_numbers_that_nft_gives_them_and_read_back() {
        let numbers: Vec<_> = (0..WORDS).map(|word| Register::word(word).number()).collect();
        assert_eq!(numbers, [1, 9, 10, 11, 2, 13, 14, 15, 3, 17, 18, 19, 4, 21, 22, 23]);
        for word in 0..WORDS {
            assert_eq!(Register::of(Register::word(word).number()), Some(Register::word(word)));
            assert_eq!(Register::of(FIRST_WORD + u32::from(word)), Some(Register::word(word)));
        }
        assert_eq!(Register::of(0), Some(Register::VERDICT));
        assert_eq!([5, 7, 24, u32::MAX].map(Register::of), [None; 4]);
        assert_eq!(Register::word(16).number(), 24, "the kernel has no such register");
    }
}
