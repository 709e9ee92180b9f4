//! What a program may do: a budget that everything is paid from that could multiply.
//!
//! Every value that a generator yields (`.[]`, `,`), every list and object that is made, and everything that a function
//! or a comparison reads is paid for. The price of a value is at least the length of the program, since so many steps
//! can be taken for it; texts and what is read to its depth cost their size as well. So the work that a program can do
//! is bounded by its budget, and its budget by the document.

use std::cell::Cell;

use jaq_core::box_iter::box_once;
use jaq_core::compile::Lut;
use jaq_core::data::HasLut;
use jaq_core::{Cv, DataT, Error, Exn, Native, ValXs};
use jaq_json::{Num, Val};

use super::TransformError;

/// The price of a value beside the length of the program.
const VALUE: u64 = 16;
/// The budget for an empty document.
const LEAST: u64 = 64 * 1024;
/// How often a program may go over all of a document, in effect.
const TIMES: u64 = 16;
/// The budget for any document.
const MOST: u64 = 32 * 1024 * 1024;

/// A compiled program.
pub(super) type Filter = jaq_core::compile::Filter<Native<Metered>>;

/// Programs over JSON that pay from a [`Meter`].
pub(super) struct Metered;

/// What a running program has at hand.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) lut: &'a Lut<Native<Metered>>,
    pub(super) meter: &'a Meter,
}

impl DataT for Metered {
    type V<'a> = Val;
    type Data<'a> = Run<'a>;
}

impl<'a> HasLut<'a, Metered> for Run<'a> {
    fn lut(&self) -> &'a Lut<Native<Metered>> {
        self.lut
    }
}

/// The budget of one run.
pub(super) struct Meter {
    price: u64,
    left: Cell<u64>,
    used_up: Cell<bool>,
}

impl Meter {
    /// The budget for a program of so many terms over a document.
    pub(super) fn new(document: &Val, terms: u64) -> Self {
        let price = VALUE + terms;
        let budget = LEAST + weight(document, price, MOST).saturating_mul(TIMES);
        Self { price, left: Cell::new(budget.min(MOST)), used_up: Cell::new(false) }
    }

    fn pay(&self, cost: u64) -> Result<(), Error<Val>> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.used_up.set(true);
                Err(Error::str("budget"))
            }
        }
    }

    /// Pays for a value and its direct parts.
    pub(super) fn pay_shallow(&self, value: &Val) -> Result<(), Error<Val>> {
        let parts = match value {
            Val::Null | Val::Bool(_) | Val::Num(_) => 0,
            Val::TStr(text) | Val::BStr(text) => return self.pay(self.price + size(text.len())),
            Val::Arr(items) => size(items.len()),
            Val::Obj(members) => size(members.len()),
        };
        self.pay(self.price.saturating_mul(parts + 1))
    }

    /// Pays for what something is looked up by.
    pub(super) fn pay_key(&self, value: &Val) -> Result<(), Error<Val>> {
        match value {
            Val::TStr(_) | Val::Num(_) => self.pay_shallow(value),
            _ => Err(Error::str("cannot index")),
        }
    }

    /// Pays for a value with everything in it.
    pub(super) fn pay_deep(&self, value: &Val) -> Result<(), Error<Val>> {
        self.pay(weight(value, self.price, self.left.get().saturating_add(1)))
    }

    /// What an error means, without what it says of the document.
    pub(super) fn explain(&self, error: Exn<'_, Val>) -> TransformError {
        if self.used_up.get() {
            return TransformError::TooMuchWork;
        }
        let said = error.get_err().map(|error| error.to_string()).unwrap_or_default();
        TransformError::Misfit(if said.starts_with("cannot index") {
            "it looks for a key or a place in something that has none, such as a number"
        } else if said.contains("iterable") {
            "it goes through the parts of something that has none, such as a number"
        } else {
            "something is not of the type that it needs"
        })
    }
}

/// The price of a value with everything in it; counting ends above `most`.
fn weight(value: &Val, price: u64, most: u64) -> u64 {
    match value {
        Val::Null | Val::Bool(_) => price,
        Val::Num(Num::Dec(digits)) => price + size(digits.len()),
        // The longest number that is read has some hundred digits.
        Val::Num(_) => price,
        Val::TStr(text) | Val::BStr(text) => price + size(text.len()),
        Val::Arr(items) => sum(price, most, items.iter().map(|item| (None, item)), price),
        Val::Obj(members) => sum(price, most, members.iter().map(|(name, value)| (Some(name), value)), price),
    }
}

fn sum<'a>(own: u64, most: u64, parts: impl Iterator<Item = (Option<&'a Val>, &'a Val)>, price: u64) -> u64 {
    let mut total = own;
    for (name, value) in parts {
        if total > most {
            break;
        }
        total += name.map_or(0, |name| weight(name, price, most - total));
        total += weight(value, price, most.saturating_sub(total));
    }
    total
}

fn size(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Hands a value on when it was paid for.
pub(super) fn paid<'a>(cv: Cv<'a, Metered>, pay: fn(&Meter, &Val) -> Result<(), Error<Val>>) -> ValXs<'a, Val> {
    let paid = pay(cv.0.data().meter, &cv.1);
    box_once(paid.map(|()| cv.1).map_err(Exn::from))
}
