//! The name of an operation in flight: where its slot is, and which life of that slot is meant.
//!
//! A token travels through the kernel as `user_data` and comes back with each completion. The index finds the slot, the
//! generation tells whether the slot still belongs to the operation that was submitted: slots are reused, and a late
//! answer must not reach the next tenant. A generation wraps after 2^32 lives of one slot; a stale completion that old
//! would have had to stay in the kernel for all of them, and a slot is not freed while the kernel can still answer.

use std::fmt;

/// Names one operation in flight: the index of its slot, and the slot's generation when it was submitted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    index: u32,
    generation: u32,
}

impl Token {
    /// The smallest index that never names a slot: the driver's own requests use the indices from here up.
    pub(crate) const RESERVED: u32 = u32::MAX - 15;

    pub(crate) const fn new(index: u32, generation: u32) -> Token {
        Token { index, generation }
    }

    /// A token for the driver's own requests, which have no slot. `which` is below 16.
    pub(crate) const fn reserved(which: u32) -> Token {
        assert!(which < 16, "sixteen indices are reserved");
        Token { index: Token::RESERVED + which, generation: 0 }
    }

    pub(crate) const fn index(self) -> u32 {
        self.index
    }

    pub(crate) const fn generation(self) -> u32 {
        self.generation
    }

    /// The token as the kernel carries it: generation above, index below.
    pub(crate) const fn to_user_data(self) -> u64 {
        ((self.generation as u64) << 32) | self.index as u64
    }

    /// The token that `to_user_data` made `user_data` from.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are taken apart on purpose")]
    pub(crate) const fn from_user_data(user_data: u64) -> Token {
        Token { index: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.index, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_the_kernel() {
        for token in [Token::new(0, 0), Token::new(7, u32::MAX), Token::new(u32::MAX, 9), Token::reserved(3)]
        {
            assert_eq!(Token::from_user_data(token.to_user_data()), token);
        }
    }
}
