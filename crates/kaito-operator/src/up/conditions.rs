//! The conditions of a workspace, printed as they change.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;

use crate::workspace::{INFERENCE_READY, RESOURCE_READY, WORKSPACE_READY};

/// A message alone, like a percentage, is printed no oftener.
const MESSAGES_EVERY: Duration = Duration::from_secs(5);

/// What a condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Whether it holds.
    pub holds: bool,
    /// The cause, in a word.
    pub reason: &'static str,
    /// The cause, in a sentence.
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
    /// None is known yet.
    ///
    /// # Errors
    ///
    /// Those of the terminal, here and below.
    pub fn begin(mut terminal: W) -> io::Result<Self> {
        writeln!(terminal, "{:9}  {:14}  {:6}  {:19}  MESSAGE", "TIME", "CONDITION", "STATUS", "REASON")?;
        Ok(Self { terminal, resource: None, inference: None, workspace: None, message_printed: None })
    }

    /// Whether there are nodes; here, whether the machine will do.
    pub fn resource(&mut self, state: State) -> io::Result<()> {
        if replace(&mut self.resource, &state) != Change::None {
            print(&mut self.terminal, RESOURCE_READY, &state)?;
        }
        self.sum_up()
    }

    /// Whether the model answers.
    pub fn inference(&mut self, state: State) -> io::Result<()> {
        let due = self.message_printed.is_none_or(|last| last.elapsed() >= MESSAGES_EVERY);
        match replace(&mut self.inference, &state) {
            Change::None => {}
            Change::Message if !due => {}
            Change::Message | Change::Cause => {
                self.message_printed = Some(Instant::now());
                print(&mut self.terminal, INFERENCE_READY, &state)?;
            }
        }
        self.sum_up()
    }

    /// Whether the model answered last.
    pub fn is_ready(&self) -> bool {
        self.inference.as_ref().is_some_and(|state| state.holds)
    }

    /// A line between the conditions.
    pub fn note(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.terminal, "{text}")?;
        self.terminal.flush()
    }

    fn sum_up(&mut self) -> io::Result<()> {
        let (Some(resource), Some(inference)) = (&self.resource, &self.inference) else { return Ok(()) };
        let state =
            match [(RESOURCE_READY, resource), (INFERENCE_READY, inference)].iter().find(|(_, state)| !state.holds) {
                None => State { holds: true, reason: "WorkspaceReady", message: "the model answers".to_owned() },
                Some((condition, state)) => {
                    State { holds: false, reason: state.reason, message: format!("{condition} is False") }
                }
            };
        // Its cause stands in the line above.
        let turned = self.workspace.as_ref().map(|before| before.holds) != Some(state.holds);
        if turned {
            print(&mut self.terminal, WORKSPACE_READY, &state)?;
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

fn print(terminal: &mut impl Write, condition: &str, State { holds, reason, message }: &State) -> io::Result<()> {
    let time = Timestamp::now().strftime("%H:%M:%SZ");
    let status = if *holds { "True" } else { "False" };
    writeln!(terminal, "{time:9}  {condition:14}  {status:6}  {reason:19}  {message}")?;
    terminal.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(holds: bool, reason: &'static str, message: &str) -> State {
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
        conditions.resource(state(true, "ThisMachine", "2 cores")).unwrap();
        assert_eq!(lines(&conditions), ["ResourceReady True ThisMachine 2 cores"]);
        assert!(!conditions.is_ready());
        for state in [
            state(false, "PodsStarting", "kaito serve"),
            state(false, "ModelLoading", "10 percent"),
            state(false, "ModelLoading", "11 percent"),
            state(true, "InferenceReady", "it answers"),
            state(true, "InferenceReady", "it answers"),
            state(false, "ContainerTerminated", "exit status 1"),
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
        conditions.resource(state(true, "ThisMachine", "x")).unwrap();
        conditions.inference(state(false, "ContainerOOMKilled", "y")).unwrap();
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
