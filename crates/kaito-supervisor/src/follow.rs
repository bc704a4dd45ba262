//! What a rank does for an order.

use crate::protocol::{Ended, Incarnation, Order, State};

/// What a rank does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It goes on.
    None,
    /// It starts its engine in this incarnation.
    Start(Incarnation),
    /// It tells its engine to end, or kills it.
    End {
        /// Whether it kills it at once.
        kill: bool,
    },
    /// It ends with a failure: its engine ended by itself, first of all.
    Exit,
}

/// What a rank in this state does, whose last engine ended so, for rank 0's `order`; `None` where rank 0 has not answered for
/// [`LOST`](crate::LOST).
pub fn follow(state: State, ended: Option<&Ended>, order: Option<&Order>) -> Action {
    let Some(order) = order else {
        // Rank 0 has begun to think the same of this one.
        return if matches!(state, State::Running(_)) { Action::End { kill: false } } else { Action::None };
    };
    match state {
        State::Running(incarnation) if order.run && order.incarnation == incarnation => Action::None,
        State::Running(_) => Action::End { kill: order.kill },
        State::Ending(incarnation) if order.kill && order.incarnation == incarnation => Action::End { kill: true },
        State::Ending(_) => Action::None,
        State::Idle if order.exit && ended.is_some_and(|ended| ended.by_itself) => Action::Exit,
        // An incarnation that this rank's engine has ended in does not begin again.
        State::Idle if order.run && ended.is_none_or(|ended| ended.incarnation != order.incarnation) => {
            Action::Start(order.incarnation)
        }
        State::Idle => Action::None,
    }
}
