//! The conditions of a workspace, printed as they change.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use crate::{reason::Reason, workspace::ConditionType};

/// Where only the message changed, like a percentage, it is printed this often at most.
const MESSAGES_EVERY: Duration = Duration::from_secs(5);

/// What a condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Whether it holds.
    pub holds: bool,
    /// The cause, for programs.
    pub reason: Reason,
    /// The cause, for people.
    pub message: String,
}

/// The conditions of one workspace on this machine.
pub struct Conditions<W> {
    terminal: W,
    resource: Option<State>,
    inference: Option<State>,
    workspace: Option<State>,
    message_printed: Option<Instant>,
}

impl<W: Write> Conditions<W> {
    /// Prints the head of the table; no condition is known yet.
    ///
    /// # Errors
    ///
    /// Those of writing to the terminal; so do the other methods.
    pub fn begin(mut terminal: W) -> io::Result<Self> {
        writeln!(terminal, "{:9}  {:14}  {:6}  {:19}  MESSAGE", "TIME", "CONDITION", "STATUS", "REASON")?;
        Ok(Self { terminal, resource: None, inference: None, workspace: None, message_printed: None })
    }

    /// Sets ResourceReady: this machine is the node.
    pub fn resource(&mut self, state: State) -> io::Result<()> {
        if replace(&mut self.resource, &state) != Change::None {
            print(&mut self.terminal, ConditionType::ResourceReady, &state)?;
        }
        self.sum_up()
    }

    /// Sets InferenceReady.
    pub fn inference(&mut self, state: State) -> io::Result<()> {
        let due = self.message_printed.is_none_or(|last| last.elapsed() >= MESSAGES_EVERY);
        match replace(&mut self.inference, &state) {
            Change::None => {}
            Change::Message if !due => {}
            Change::Message | Change::Cause => {
                self.message_printed = Some(Instant::now());
                print(&mut self.terminal, ConditionType::InferenceReady, &state)?;
            }
        }
        self.sum_up()
    }

    /// Whether InferenceReady is true.
    pub fn is_ready(&self) -> bool {
        self.inference.as_ref().is_some_and(|state| state.holds)
    }

    /// Prints a line between the conditions.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.terminal, "{text}")?;
        self.terminal.flush()
    }

    fn sum_up(&mut self) -> io::Result<()> {
        let (Some(resource), Some(inference)) = (&self.resource, &self.inference) else { return Ok(()) };
        let state = match [(ConditionType::ResourceReady, resource), (ConditionType::InferenceReady, inference)]
            .iter()
            .find(|(_, state)| !state.holds)
        {
            None => State { holds: true, reason: Reason::WorkspaceReady, message: "the model answers".to_owned() },
            Some((condition, state)) => {
                State { holds: false, reason: state.reason, message: format!("{condition} is False") }
            }
        };
        // Only a change of the status is printed: the line above has the cause.
        let turned = self.workspace.as_ref().map(|before| before.holds) != Some(state.holds);
        if turned {
            print(&mut self.terminal, ConditionType::WorkspaceReady, &state)?;
        }
        self.workspace = Some(state);
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Message,
    Cause,
}

fn replace(before: &mut Option<State>, state: &State) -> Change {
    match before.replace(state.clone()) {
        Some(before) if before == *state => Change::None,
        Some(before) if (before.holds, before.reason) == (state.holds, state.reason) => Change::Message,
        _ => Change::Cause,
    }
}

fn print(
    terminal: &mut impl Write,
    condition: ConditionType,
    State { holds, reason, message }: &State,
) -> io::Result<()> {
    let time = Timestamp::now().strftime("%H:%M:%SZ");
    let status = if *holds { "True" } else { "False" };
    writeln!(terminal, "{time:9}  {condition:14}  {status:6}  {reason:19}  {message}")?;
    terminal.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(holds: bool, reason: Reason, message: &str) -> State {
        State { holds, reason, message: message.to_owned() }
    }

    /// What was printed, without the times.
    fn lines(conditions: &Conditions<Vec<u8>>) -> Vec<String> {
        let text = String::from_utf8(conditions.terminal.clone()).unwrap();
        let columns = |line: &str| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ");
        text.lines().skip(1).map(columns).collect()
    }

    #[test]
    fn a_condition_is_printed_when_its_cause_changes() {
        let mut conditions = Conditions::begin(Vec::new()).unwrap();
        conditions.resource(state(true, Reason::ThisMachine, "2 cores")).unwrap();
        assert_eq!(lines(&conditions), ["ResourceReady True ThisMachine 2 cores"]);
        assert!(!conditions.is_ready());
        for state in [
            state(false, Reason::PodsStarting, "kaito serve"),
            state(false, Reason::ModelLoading, "10 percent"),
            state(false, Reason::ModelLoading, "11 percent"),
            state(true, Reason::InferenceReady, "it answers"),
            state(true, Reason::InferenceReady, "it answers"),
            state(false, Reason::ContainerTerminated, "exit status 1"),
        ] {
            conditions.inference(state).unwrap();
        }
        assert_eq!(
            lines(&conditions)[1..],
            [
                "InferenceReady False PodsStarting kaito serve",
                "WorkspaceReady False PodsStarting InferenceReady is False",
                "InferenceReady False ModelLoading 10 percent",
                "InferenceReady True InferenceReady it answers",
                "WorkspaceReady True WorkspaceReady the model answers",
                "InferenceReady False ContainerTerminated exit status 1",
                "WorkspaceReady False ContainerTerminated InferenceReady is False",
            ]
        );
    }

    #[test]
    fn columns_stand_below_each_other() {
        let mut conditions = Conditions::begin(Vec::new()).unwrap();
        conditions.resource(state(true, Reason::ThisMachine, "x")).unwrap();
        conditions.inference(state(false, Reason::ContainerOomKilled, "y")).unwrap();
        let text = String::from_utf8(conditions.terminal).unwrap();
        let header = text.lines().next().unwrap();
        for (column, words) in
            [("CONDITION", &["ResourceReady", "InferenceReady", "WorkspaceReady"][..]), ("MESSAGE", &["x", "y", "I"])]
        {
            let at = header.find(column).unwrap();
            for (line, word) in text.lines().skip(1).zip(words) {
                assert!(line[at..].starts_with(word), "{text}");
            }
        }
    }
}
