//! Which endpoints want a subject: a tree over subject tokens, so that ten thousand endpoints cost a message no more
//! than those that want it.

use std::collections::HashMap;

/// Patterns by their tokens; at its end each has the number of what wants it.
#[derive(Clone, Debug, Default)]
pub(super) struct Interest {
    next: HashMap<String, Interest>,
    /// Behind `*`.
    any: Option<Box<Interest>>,
    /// Patterns that end here.
    here: Vec<usize>,
    /// Patterns that end here with `>`.
    rest: Vec<usize>,
}

impl Interest {
    /// Adds a pattern.
    pub(super) fn add(&mut self, pattern: &str, number: usize) {
        let mut node = self;
        for token in pattern.split('.') {
            node = match token {
                ">" => return node.rest.push(number),
                "*" => node.any.get_or_insert_default(),
                token => node.next.entry(token.to_owned()).or_default(),
            };
        }
        node.here.push(number);
    }

    /// The numbers of all patterns that take the subject, each once, in order.
    pub(super) fn of(&self, subject: &str) -> Vec<usize> {
        let tokens: Vec<&str> = subject.split('.').collect();
        let mut found = Vec::new();
        self.collect(&tokens, &mut found);
        found.sort_unstable();
        found.dedup();
        found
    }

    fn collect(&self, tokens: &[&str], found: &mut Vec<usize>) {
        let Some((first, others)) = tokens.split_first() else { return found.extend(&self.here) };
        found.extend(&self.rest);
        if let Some(next) = self.next.get(*first) {
            next.collect(others, found);
        }
        if let Some(any) = &self.any {
            any.collect(others, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::subject;

    proptest! {
        #[test]
        fn the_tree_finds_what_looking_at_each_pattern_finds(
            patterns in prop::collection::vec("(outbox|\\*)(\\.(a|b|\\*)){0,3}(\\.>)?", 0..20),
            subject in "outbox(\\.(a|b|c)){0,4}",
        ) {
            let mut interest = Interest::default();
            patterns.iter().enumerate().for_each(|(number, pattern)| interest.add(pattern, number));
            let each: Vec<usize> =
                (0..patterns.len()).filter(|number| subject::matches(&patterns[*number], &subject)).collect();
            prop_assert_eq!(interest.of(&subject), each);
        }
    }
}
