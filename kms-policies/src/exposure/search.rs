//! Is there a call that gets through? A search over everything a call may hold, within a budget.
//!
//! Each part of a call (a register, a value of the encryption context, ...) is a variable with finitely many values. A condition that
//! must hold, or a `Deny` that must not apply, is a [`Clause`]: some one of its terms must hold, and a term narrows variables.

/// Some values of one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Values(Vec<u64>);

/// Several variables, narrowed; all of it must hold.
pub(super) type Term = Vec<(usize, Values)>;
/// Alternatives; one of them must hold.
pub(super) type Clause = Vec<Term>;

/// The search took more steps than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Values {
    /// Of `count` values those for which `holds`.
    pub(super) fn those(count: usize, mut holds: impl FnMut(usize) -> bool) -> Self {
        let mut words = vec![0; count.div_ceil(BITS)];
        for i in (0..count).filter(|i| holds(*i)) {
            if let Some(word) = words.get_mut(i / BITS) {
                *word |= 1_u64 << (i % BITS);
            }
        }
        Self(words)
    }

    /// The values that both have.
    pub(super) fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn is_within(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(a, b)| a & !b == 0)
    }

    fn meets(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a & b != 0)
    }

    fn first(&self) -> Option<usize> {
        let (word, bits) = self.0.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        Some(word * BITS + usize::try_from(bits.trailing_zeros()).unwrap_or(0))
    }
}

/// One value for each variable such that every clause holds, if there is such a choice.
pub(super) fn solve(
    domains: &[Values],
    clauses: &[&Clause],
    budget: &mut u32,
) -> Result<Option<Vec<usize>>, Exhausted> {
    let mut remaining = Vec::new();
    let mut narrowest: Option<(usize, &Clause)> = None;
    for &clause in clauses {
        let mut open = 0;
        let mut holds = false;
        for term in clause {
            *budget = budget.checked_sub(1).ok_or(Exhausted)?;
            let narrowed = |test: fn(&Values, &Values) -> bool| {
                term.iter().all(|(variable, values)| domains.get(*variable).is_some_and(|domain| test(domain, values)))
            };
            open += usize::from(narrowed(Values::meets));
            holds |= narrowed(Values::is_within);
        }
        if open == 0 {
            return Ok(None);
        }
        if !holds {
            remaining.push(clause);
            if narrowest.is_none_or(|(fewest, _)| open < fewest) {
                narrowest = Some((open, clause));
            }
        }
    }
    let Some((_, clause)) = narrowest else {
        return Ok(domains.iter().map(Values::first).collect());
    };
    remaining.retain(|other| !std::ptr::eq(*other, clause));
    for term in clause {
        if let Some(narrowed) = narrow(domains, term)
            && let Some(found) = solve(&narrowed, &remaining, budget)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The domains narrowed by a term; `None` if one becomes empty.
pub(super) fn narrow(domains: &[Values], term: &Term) -> Option<Vec<Values>> {
    let mut narrowed = domains.to_vec();
    for (variable, values) in term {
        let domain = narrowed.get_mut(*variable)?;
        *domain = domain.and(values);
        if domain.is_empty() {
            return None;
        }
    }
    Some(narrowed)
}

const BITS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[usize]) -> Values {
        Values::those(70, |i| values.contains(&i))
    }

    #[test]
    fn a_choice_is_found_where_there_is_one_and_only_there() {
        let whole = vec![Values::those(70, |_| true); 2];
        let not_both: Clause = vec![vec![(0, set(&[1]))], vec![(1, set(&[65]))]];
        let first: Clause = vec![vec![(0, set(&[2, 3]))]];
        let second: Clause = vec![vec![(1, set(&[64, 69]))]];
        assert_eq!(solve(&whole, &[&not_both, &first], &mut 100), Ok(Some(vec![2, 65])));
        assert_eq!(solve(&whole, &[&not_both, &first, &second], &mut 100), Ok(None));
        assert_eq!(solve(&whole, &[], &mut 100), Ok(Some(vec![0, 0])));
    }

    #[test]
    fn a_clause_without_terms_cannot_hold_and_one_with_an_empty_term_always_does() {
        let whole = vec![Values::those(2, |_| true)];
        assert_eq!(solve(&whole, &[&vec![]], &mut 10), Ok(None));
        assert_eq!(solve(&whole, &[&vec![vec![]]], &mut 10), Ok(Some(vec![0])));
    }

    #[test]
    fn a_search_that_takes_too_long_says_so() {
        let whole = vec![Values::those(70, |_| true); 40];
        let clauses: Vec<Clause> =
            (0..40).map(|v| (0..69).map(|i| vec![(v, set(&[i])), ((v + 1) % 40, set(&[i + 1]))]).collect()).collect();
        let clauses: Vec<&Clause> = clauses.iter().collect();
        assert_eq!(solve(&whole, &clauses, &mut 5_000), Err(Exhausted));
    }
}
