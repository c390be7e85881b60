//! What a form's regular expressions may come to cost, seen before anything is computed with them.
//!
//! The library's lexer works with derivatives (Brzozowski 1964). It counts how many it makes, and stops between two of them when it is
//! told to; but one alone may be as long as the form: after `a?a?a?...` with n parts any of n may come next, after the next letter any
//! of n - 1, and so on. So what one derivative of each part may hold is counted here.

use std::mem::discriminant;

use llguidance::derivre::raw::ExprSet;
use llguidance::derivre::{ExprRef, RegexBuilder};

/// Whether the derivatives of all parts together stay short. None if it cannot be known.
pub(super) fn is_light(parts: &ExprSet) -> Option<bool> {
    // The library has no public name for what a part is: this one is a sequence.
    let mut sample = RegexBuilder::new();
    let sequence = sample.mk_regex("[ab][cd]").ok()?;
    let sequence = discriminant(&sample.exprset().get(sequence));
    let mut widths: Vec<usize> = Vec::with_capacity(parts.len());
    let mut total = 0_usize;
    for id in 0..u32::try_from(parts.len()).ok()? {
        // Parts come before what is made of them. Number 0 is none.
        let of = |part: &ExprRef| widths.get(part.as_usize()).copied().unwrap_or(1);
        let of_each = if id == 0 { &[] } else { parts.get_args(ExprRef::new(id)) };
        let width = match of_each {
            [first, _] if discriminant(&parts.get(ExprRef::new(id))) == sequence && !parts.is_nullable(*first) => {
                of(first)
            }
            parts => parts.iter().map(of).fold(1, usize::saturating_add),
        };
        widths.push(width);
        total = total.saturating_add(width);
    }
    Some(total <= MOST)
}

/// Whether a text names few enough sets of characters by a class (`\w`, `\pL`): each becomes hundreds of parts.
pub(super) fn has_few_classes(text: &str) -> bool {
    let is_class = |pair: &[u8]| matches!(pair, [b'\\', b'p' | b'P' | b'w' | b'W' | b'd' | b'D' | b's' | b'S']);
    text.as_bytes().windows(2).filter(|pair| is_class(pair)).count() <= MAX_CLASSES
}

/// Of four bytes each. What is made of them later is bounded as it is made, in bytes and in time.
const MOST: usize = 1 << 20;
const MAX_CLASSES: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    fn light(regex: &str) -> bool {
        let mut builder = RegexBuilder::new();
        builder.mk_regex(regex).unwrap();
        is_light(builder.exprset()).unwrap()
    }

    #[test]
    fn a_sequence_that_may_go_on_anywhere_is_heavy_and_one_that_may_not_is_light() {
        assert!(light(&"a?b?".repeat(300)) && !light(&"a?b?".repeat(2_000)));
        assert!(!light(&format!("[a-d]{{60}}{}", "a?".repeat(8_000))));
        assert!(!light(&"\\pL?".repeat(2_000)));
        assert!(light(&"[ab][cd]e".repeat(4_000)));
        let words: Vec<String> = (0..5_000).map(|number| format!("{number:x}")).collect();
        assert!(light(&words.join("|")));
    }

    #[test]
    fn classes_are_counted() {
        assert!(has_few_classes(&"\\w\\n".repeat(500)) && !has_few_classes(&"\\w".repeat(501)));
    }
}
