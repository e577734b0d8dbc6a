//! Redis's `stringmatch`: the patterns of KEYS, SCAN MATCH and CONFIG GET.
//!
//! `*` is any bytes, `?` one byte, `[abc]`, `[a-z]`, `[^a]` one byte of a class, `\x` the byte x itself. What is malformed is
//! read as Redis reads it: a class without an end takes the rest of the pattern, a `\` at the end is itself.
//!
//! Only the last `*` is ever retried. That is enough, since what an earlier `*` could take on top, the later one can take as
//! well, and it bounds the work by pattern × text, where trying every split is exponential.

/// Whether `text` matches `pattern`.
#[must_use]
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    matches_by(pattern, text, |byte| byte)
}

/// The same, letters in any case.
#[must_use]
pub fn matches_nocase(pattern: &[u8], text: &[u8]) -> bool {
    matches_by(pattern, text, |byte| byte.to_ascii_lowercase())
}

/// Whether every text matches, without looking at one.
#[must_use]
pub fn matches_all(pattern: &[u8]) -> bool {
    pattern == b"*"
}

fn matches_by(mut pattern: &[u8], mut text: &[u8], fold: impl Fn(u8) -> u8 + Copy) -> bool {
    if text.is_empty() {
        // Redis does not begin to match: not even stars are nothing.
        return pattern.is_empty();
    }
    // Where to go on when the part behind the last `*` fails: that part, and the text from which it was tried.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        if let Some(behind) = pattern.strip_prefix(b"*") {
            pattern = behind;
            retry = Some((behind, text));
            continue;
        }
        let step = match (pattern, text) {
            ([], []) => return true,
            ([], _) | (_, []) => None,
            (_, [byte, rest @ ..]) => match_one(pattern, *byte, fold).map(|pattern| (pattern, rest)),
        };
        (pattern, text) = match (step, retry) {
            (Some(next), _) => next,
            (None, Some((behind, [_, rest @ ..]))) => {
                retry = Some((behind, rest));
                (behind, rest)
            }
            (None, _) => return false,
        };
    }
}

/// Matches one byte against the front of a pattern that is not empty; gives the rest of the pattern.
fn match_one(pattern: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> Option<&[u8]> {
    let (matched, rest) = match pattern {
        [b'?', rest @ ..] => (true, rest),
        [b'[', b'^', class @ ..] => {
            let (found, rest) = match_class(class, byte, fold);
            (!found, rest)
        }
        [b'[', class @ ..] => match_class(class, byte, fold),
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (fold(*literal) == fold(byte), rest),
        [] => (false, pattern),
    };
    matched.then_some(rest)
}

/// Looks for `byte` in the class whose inside `class` begins with; gives the pattern behind its `]`.
fn match_class(mut class: &[u8], byte: u8, fold: impl Fn(u8) -> u8) -> (bool, &[u8]) {
    let mut found = false;
    loop {
        let (hit, rest) = match class {
            [] => return (found, class),
            [b'\\', literal, rest @ ..] => (*literal == byte, rest),
            [b']', rest @ ..] => return (found, rest),
            [from, b'-', to, rest @ ..] => {
                let (low, high) = (fold(*from.min(to)), fold(*from.max(to)));
                ((low..=high).contains(&fold(byte)), rest)
            }
            [literal, rest @ ..] => (fold(*literal) == fold(byte), rest),
        };
        found |= hit;
        class = rest;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Redis's function, recursive and without the cut-off that makes it fast.
    fn stringmatch(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|eaten| stringmatch(rest, &text[eaten..])),
            _ => text.first().is_some_and(|&byte| {
                match_one(pattern, byte, |it| it).is_some_and(|rest| stringmatch(rest, &text[1..]))
            }),
        }
    }

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, matched) in [
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a*b*c", "aXbYbZc", true),
            ("?b?", "abc", true),
            ("[a-c]x", "bx", true),
            ("[c-a]x", "bx", true),
            ("[^a]x", "ax", false),
            ("[^a]x", "bx", true),
            ("[]x", "]x", false),
            ("[a-]x", "_x", false),
            ("[a-]", "_", true),
            ("[ab", "b", true),
            ("[", "[", false),
            ("[^", "x", true),
            ("[\\]]", "]", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("\\", "\\", true),
            ("", "", true),
            ("**", "", false),
            ("a", "A", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), matched, "{pattern:?} {text:?}");
        }
        assert!(matches_nocase(b"MAX[C-M]*", b"maxmemory"));
    }

    // What could go wrong: a pattern of many stars takes exponential time, and KEYS stops the worker.
    #[test]
    fn many_stars_cost_no_more_than_one() {
        let pattern = [b"a*".repeat(1000), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &vec![b'a'; 10_000]));
    }

    proptest! {
        #[test]
        fn retrying_the_last_star_only_is_enough(pattern in r"[ab*?\[\]^\\-]{0,8}", text in "[ab]{1,8}") {
            prop_assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), stringmatch(pattern.as_bytes(), text.as_bytes()));
        }
    }
}
