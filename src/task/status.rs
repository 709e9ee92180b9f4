//! The states of a task and their legal moves, as in the A2A protocol (specification, `TaskState`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Status {
    /// Taken, and offered to the agent.
    Submitted,
    /// The agent works on it.
    Working,
    /// It cannot go on without something from the client.
    InputRequired,
    /// It cannot go on before the client has authenticated somewhere.
    AuthRequired,
    /// Done.
    Completed,
    /// Not done, and it will not be.
    Failed,
    /// Called off before its end.
    Canceled,
    /// The agent does not do it.
    Rejected,
}

impl Status {
    pub(crate) const ALL: [Self; 8] = [
        Self::Submitted,
        Self::Working,
        Self::InputRequired,
        Self::AuthRequired,
        Self::Completed,
        Self::Failed,
        Self::Canceled,
        Self::Rejected,
    ];

    /// The word on the wire.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Submitted => "submitted",
            Self::Working => "working",
            Self::InputRequired => "input-required",
            Self::AuthRequired => "auth-required",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing comes after it.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled | Self::Rejected)
    }

    /// Whether a task may go from this state to another. A state may be said again, with other progress; what has
    /// ended stays as it is, and nothing is submitted a second time.
    pub(crate) fn may_become(self, next: Self) -> bool {
        !self.is_terminal() && next != Self::Submitted
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
            let known = Self::ALL.map(Self::as_str).join(", ");
            format!("`status` must be one of {known}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_states_is_a_legal_move_or_none() {
        // Rows: from; columns: to, in the order of `ALL`.
        let table = [
            (Status::Submitted, [false, true, true, true, true, true, true, true]),
            (Status::Working, [false, true, true, true, true, true, true, true]),
            (Status::InputRequired, [false, true, true, true, true, true, true, true]),
            (Status::AuthRequired, [false, true, true, true, true, true, true, true]),
            (Status::Completed, [false; 8]),
            (Status::Failed, [false; 8]),
            (Status::Canceled, [false; 8]),
            (Status::Rejected, [false; 8]),
        ];
        assert_eq!(table.map(|(from, _)| from), Status::ALL);
        for (from, legal) in table {
            assert_eq!(Status::ALL.map(|to| from.may_become(to)), legal, "from {from}");
        }
    }

    #[test]
    fn a_state_reads_back_as_it_is_written_and_another_word_is_none() {
        for status in Status::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
        }
        assert!("done".parse::<Status>().unwrap_err().contains("input-required"));
    }
}
