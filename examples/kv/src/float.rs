//! Numbers as INCRBYFLOAT sees them: x87's 80-bit floats, which Redis calls `long double`.
//!
//! A reply must equal Redis's byte for byte, and `0.1 + 0.2` is `0.3` there, where 64-bit floats give
//! `0.30000000000000004`. So the three things that are done with such numbers are done exactly, on big integers, and rounded once to
//! 64 bits of mantissa, to nearest even, as the hardware and the C library do:
//!
//! - [`Extended::parse`], what `strtold` reads: decimal or hexadecimal, with exponents;
//! - [`Extended::plus`];
//! - [`Extended::format`], what `%.17Lf` prints, without the zeros at its end.
//!
//! It is nowhere near the path of other commands, so it is written to be short.

use std::cmp::Ordering;

/// The longest text Redis reads as a float (`MAX_LONG_DOUBLE_CHARS`).
const TEXT_MAX: usize = 5 * 1024;
/// Decimal exponents beyond this under- or overflow, whatever the digits (of which `TEXT_MAX` is the limit).
const EXPONENT_MAX: i64 = 20_000;
/// The largest exponent of a mantissa read as an integer: 2^16384 overflows.
const BINARY_MAX: i64 = 16_384 - 64;
/// The smallest: below, mantissas lose bits (subnormal numbers).
const BINARY_MIN: i64 = -16_445;

/// A finite number of 64 bits: `mantissa × 2^exponent`, negative or not; the mantissa has its top bit set unless the number
/// is subnormal or zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    negative: bool,
    mantissa: u64,
    exponent: i64,
}

/// What an operation can end with besides a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatError {
    /// The text is no number, or one too large or too small to be told from infinity or zero.
    Invalid,
    /// The result is infinite.
    Infinite,
}

impl Extended {
    /// Reads a number.
    ///
    /// # Errors
    /// [`FloatError::Infinite`] for `inf` in its spellings; [`FloatError::Invalid`] for what is no number at all.
    pub fn parse(text: &[u8]) -> Result<Self, FloatError> {
        if text.is_empty() || text.len() >= TEXT_MAX {
            return Err(FloatError::Invalid);
        }
        let (negative, body) = match text {
            [b'-', body @ ..] => (true, body),
            [b'+', body @ ..] => (false, body),
            body => (false, body),
        };
        if body.eq_ignore_ascii_case(b"inf") || body.eq_ignore_ascii_case(b"infinity") {
            return Err(FloatError::Infinite);
        }
        let (base, body) = match body {
            [b'0', b'x' | b'X', body @ ..] => (16, body),
            body => (10, body),
        };
        let (digits, exponent) = split_exponent(body, if base == 16 { b'p' } else { b'e' })?;
        let (mut number, mut fraction, mut point, mut any) = (Big::default(), 0_i64, false, false);
        for &byte in digits {
            if byte == b'.' && !point {
                point = true;
                continue;
            }
            let digit = char::from(byte).to_digit(base).ok_or(FloatError::Invalid)?;
            number.multiply_add(base, digit);
            fraction += i64::from(point);
            any = true;
        }
        if !any {
            return Err(FloatError::Invalid);
        }
        if number.is_zero() {
            return Ok(Self { negative, mantissa: 0, exponent: 0 });
        }
        let rounded = if base == 16 {
            Self::round(negative, number, Big::from(1), exponent - 4 * fraction)
        } else {
            let power = exponent - fraction;
            let scale =
                Big::power_of_ten(power.unsigned_abs().try_into().expect("bounded by split_exponent"));
            match power {
                0.. => Self::round(negative, number.multiply(&scale), Big::from(1), 0),
                _ => Self::round(negative, number, scale, 0),
            }
        };
        // `strtold` says ERANGE both ways, and Redis takes that for no number.
        rounded.ok().filter(|value| value.mantissa != 0).ok_or(FloatError::Invalid)
    }

    /// The sum, rounded.
    ///
    /// # Errors
    /// When it is infinite.
    pub fn plus(self, other: Self) -> Result<Self, FloatError> {
        let exponent = self.exponent.min(other.exponent);
        let aligned = |it: Self| Big::from(it.mantissa).shift_left(shift(it.exponent - exponent));
        let (a, b) = (aligned(self), aligned(other));
        if self.negative == other.negative {
            return Self::round(self.negative, a.add(&b), Big::from(1), exponent);
        }
        let (negative, sum) = match a.compare(&b) {
            Ordering::Less => (other.negative, b.subtract(&a)),
            Ordering::Equal => return Ok(Self { negative: false, mantissa: 0, exponent: 0 }),
            Ordering::Greater => (self.negative, a.subtract(&b)),
        };
        Self::round(negative, sum, Big::from(1), exponent)
    }

    /// The digits, as Redis prints them for people: at most 17 behind the point, no zeros at the end.
    #[must_use]
    pub fn format(self) -> String {
        let scaled = Big::from(self.mantissa).multiply(&Big::power_of_ten(17));
        let scaled = match u32::try_from(self.exponent) {
            Ok(_) => scaled.shift_left(shift(self.exponent)),
            Err(_) => scaled.shift_right_to_even(shift(-self.exponent)),
        };
        let mut digits = scaled.to_decimal();
        let zeros = 18_usize.saturating_sub(digits.len());
        digits.insert_str(0, &"0".repeat(zeros));
        digits.insert(digits.len() - 17, '.');
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        if self.negative && digits != "0" { format!("-{digits}") } else { digits.to_owned() }
    }

    /// `numerator / denominator × 2^exponent`, to nearest, ties to even.
    fn round(negative: bool, numerator: Big, denominator: Big, exponent: i64) -> Result<Self, FloatError> {
        if numerator.is_zero() {
            return Ok(Self { negative, mantissa: 0, exponent: 0 });
        }
        // Shift so that the quotient has 66 or 67 bits: 64 and what is needed to round.
        let bits = |big: &Big| i64::try_from(big.bits()).expect("bounded by TEXT_MAX");
        let up = 66 - (bits(&numerator) - bits(&denominator));
        let (numerator, denominator) = match up {
            0.. => (numerator.shift_left(shift(up)), denominator),
            _ => (numerator, denominator.shift_left(shift(-up))),
        };
        let (quotient, exact) = numerator.divide(&denominator);
        let exponent = exponent - up;
        // Drop what exceeds 64 bits, and more if the number is subnormal.
        let excess = (bits(&quotient) - 64).max(BINARY_MIN - exponent);
        if excess > 128 {
            return Ok(Self { negative, mantissa: 0, exponent: 0 });
        }
        let wide = quotient.to_u128();
        let excess = u32::try_from(excess).expect("the quotient has more than 64 bits");
        let half = 1_u128 << (excess - 1);
        let (kept, dropped) = (wide.checked_shr(excess).unwrap_or(0), wide & (half | (half - 1)));
        let above = dropped > half || (dropped == half && (!exact || kept & 1 == 1));
        let mut mantissa = kept + u128::from(above);
        let mut exponent = exponent + i64::from(excess);
        if mantissa >> 64 == 1 {
            (mantissa, exponent) = (mantissa >> 1, exponent + 1);
        }
        if exponent > BINARY_MAX {
            return Err(FloatError::Infinite);
        }
        Ok(Self { negative, mantissa: u64::try_from(mantissa).expect("64 bits are left"), exponent })
    }
}

fn shift(bits: i64) -> usize {
    usize::try_from(bits).expect("the caller looked at the sign")
}

/// Takes `e12` off the end of the digits.
fn split_exponent(body: &[u8], mark: u8) -> Result<(&[u8], i64), FloatError> {
    let Some(at) = body.iter().position(|byte| byte.eq_ignore_ascii_case(&mark)) else {
        return Ok((body, 0));
    };
    let (sign, digits) = match &body[at + 1..] {
        [b'-', digits @ ..] => (-1, digits),
        [b'+', digits @ ..] => (1, digits),
        digits => (1, digits),
    };
    if digits.is_empty() {
        return Err(FloatError::Invalid);
    }
    let mut exponent = 0_i64;
    for &byte in digits {
        let digit = char::from(byte).to_digit(10).ok_or(FloatError::Invalid)?;
        exponent = (exponent * 10 + i64::from(digit)).min(EXPONENT_MAX);
    }
    Ok((&body[..at], sign * exponent))
}

// ---- Big integers -----------------------------------------------------------------------------------------------------

/// A natural number: 32-bit limbs, the least first, none of the last ones zero.
#[derive(Debug, Clone, Default)]
struct Big(Vec<u32>);

impl From<u64> for Big {
    fn from(value: u64) -> Self {
        let mut big = Self(vec![low(value), low(value >> 32)]);
        big.trim();
        big
    }
}

/// The lower half of a limb product.
#[expect(clippy::cast_possible_truncation, reason = "takes the lower half on purpose")]
fn low(value: u64) -> u32 {
    value as u32
}

impl Big {
    fn trim(&mut self) {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
    }

    fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    fn bits(&self) -> usize {
        self.0.last().map_or(0, |top| self.0.len() * 32 - top.leading_zeros() as usize)
    }

    fn bit(&self, at: usize) -> bool {
        self.0.get(at / 32).is_some_and(|limb| limb >> (at % 32) & 1 == 1)
    }

    fn power_of_ten(power: usize) -> Self {
        let mut big = Self::from(1);
        for _ in 0..power {
            big.multiply_add(10, 0);
        }
        big
    }

    fn multiply_add(&mut self, factor: u32, summand: u32) {
        let mut carry = u64::from(summand);
        for limb in &mut self.0 {
            carry += u64::from(*limb) * u64::from(factor);
            *limb = low(carry);
            carry >>= 32;
        }
        if carry > 0 {
            self.0.push(low(carry));
        }
    }

    fn multiply(&self, other: &Self) -> Self {
        let mut product = vec![0; self.0.len() + other.0.len()];
        for (i, a) in self.0.iter().enumerate() {
            let mut carry = 0_u64;
            for (j, b) in other.0.iter().chain(&[0]).enumerate().take(product.len() - i) {
                carry += u64::from(*a) * u64::from(*b) + u64::from(product[i + j]);
                product[i + j] = low(carry);
                carry >>= 32;
            }
        }
        let mut big = Self(product);
        big.trim();
        big
    }

    fn add(&self, other: &Self) -> Self {
        let mut carry = 0_u64;
        let mut sum = Vec::new();
        for i in 0..=self.0.len().max(other.0.len()) {
            carry += u64::from(*self.0.get(i).unwrap_or(&0)) + u64::from(*other.0.get(i).unwrap_or(&0));
            sum.push(low(carry));
            carry >>= 32;
        }
        let mut big = Self(sum);
        big.trim();
        big
    }

    /// The difference; `other` is not the larger one.
    fn subtract(&self, other: &Self) -> Self {
        let mut borrow = false;
        let mut big = self.clone();
        for (i, limb) in big.0.iter_mut().enumerate() {
            let (less, first) = limb.overflowing_sub(*other.0.get(i).unwrap_or(&0));
            let (less, second) = less.overflowing_sub(u32::from(borrow));
            (*limb, borrow) = (less, first || second);
        }
        big.trim();
        big
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.0.len().cmp(&other.0.len()).then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }

    fn shift_left(&self, bits: usize) -> Self {
        if self.is_zero() {
            return Self::default();
        }
        let mut shifted = Self([vec![0; bits / 32], self.0.clone()].concat());
        shifted.multiply_add(1 << (bits % 32), 0);
        shifted
    }

    /// `self / 2^bits`, to nearest, ties to even.
    fn shift_right_to_even(&self, bits: usize) -> Self {
        let half = bits.checked_sub(1).is_some_and(|half| self.bit(half));
        let below = (0..bits.saturating_sub(1)).any(|at| self.bit(at));
        let mut quotient = Self::default();
        for at in (bits..self.bits()).rev() {
            quotient.multiply_add(2, u32::from(self.bit(at)));
            quotient.trim();
        }
        if half && (below || quotient.bit(0)) { quotient.add(&Self::from(1)) } else { quotient }
    }

    /// The quotient, and whether nothing is left over. Quotients here have some 66 bits: one subtraction for each.
    fn divide(&self, divisor: &Self) -> (Self, bool) {
        let steps = (self.bits() + 1).saturating_sub(divisor.bits());
        let (mut rest, mut quotient) = (self.clone(), Self::default());
        for step in (0..steps).rev() {
            let part = divisor.shift_left(step);
            let fits = part.compare(&rest) != Ordering::Greater;
            if fits {
                rest = rest.subtract(&part);
            }
            quotient.multiply_add(2, u32::from(fits));
            quotient.trim();
        }
        (quotient, rest.is_zero())
    }

    fn to_u128(&self) -> u128 {
        self.0.iter().rev().fold(0, |value, limb| value << 32 | u128::from(*limb))
    }

    fn to_decimal(&self) -> String {
        let mut rest = self.clone();
        let mut groups = Vec::new();
        while !rest.is_zero() {
            let mut remainder = 0_u64;
            for limb in rest.0.iter_mut().rev() {
                remainder = remainder << 32 | u64::from(*limb);
                *limb = low(remainder / 1_000_000_000);
                remainder %= 1_000_000_000;
            }
            rest.trim();
            groups.push(remainder);
        }
        let mut digits = groups.pop().unwrap_or(0).to_string();
        groups.iter().rev().for_each(|group| digits.push_str(&format!("{group:09}")));
        digits
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(a: &str, b: &str) -> String {
        let parse = |text: &str| Extended::parse(text.as_bytes()).expect("a number");
        parse(a).plus(parse(b)).expect("finite").format()
    }

    // What these replies are was seen from redis-server 7.0.15.
    #[test]
    fn sums_are_those_of_redis() {
        for (a, b, expected) in [
            ("0.1", "0.2", "0.3"),
            ("10.5", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("0", "0x1p3", "8"),
            ("3", "-3", "0"),
            ("-0", "-0", "0"),
            ("0", "1e-17", "0.00000000000000001"),
            ("0", "1e-18", "0"),
            ("1e17", "0.5", "100000000000000000.5"),
            ("0", "1e20", "100000000000000000000"),
            ("9007199254740993", "0", "9007199254740993"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("18446744073709551616", "1", "18446744073709551616"),
            ("1.", ".5", "1.5"),
            ("512.1", "0", "512.09999999999999998"),
            ("0", "1e-4940", "0"),
        ] {
            assert_eq!(sum(a, b), expected, "{a} + {b}");
        }
        let big = sum("0", "1e4000");
        assert!(
            big.starts_with("99999999999999999999654638730996237849324925835069576313015")
                && big.len() == 4000
        );
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "", " 1", "1 ", "x", "1x", ".", "-", "e5", "1e", "1e5000", "1e-5000", "nan", "0x", "1.2.3", "--1",
        ] {
            assert_eq!(Extended::parse(text.as_bytes()), Err(FloatError::Invalid), "{text:?}");
        }
        assert_eq!(Extended::parse(b"-Inf"), Err(FloatError::Infinite));
        let max = Extended::parse(b"1.18e4932").expect("just below the limit");
        assert_eq!(max.plus(max), Err(FloatError::Infinite));
    }

    proptest! {
        // What could go wrong: a limb's carry is lost, or a number that fits is rounded.
        #[test]
        fn integers_below_2_to_the_64_are_exact(a in any::<u32>(), b in any::<u64>()) {
            let expected = (u128::from(a) + u128::from(b) / 4).to_string();
            prop_assert_eq!(sum(&a.to_string(), &(b / 4).to_string()), expected);
        }

        #[test]
        fn decimals_come_back_while_17_digits_do_not_show_the_rounding(whole in 0..32_u32, fraction in "[0-9]{0,14}[1-9]") {
            let text = format!("{whole}.{fraction}");
            prop_assert_eq!(sum(&text, "0"), text);
        }
    }
}
