//! Waiting for a task's end, and printing it.

use crate::{exit::Failure, output};
use clap::ValueEnum;
use client::Client;
use protocol::{
    TaskId,
    task::{Task, TaskState},
};
use serde_json::value::RawValue;
use service::{Shutdown, duration::show_duration};
use std::{convert::Infallible, time::Duration};

/// After the first Ctrl-C a second one is waited for this long.
pub(crate) const SECOND_SIGNAL_WITHIN: Duration = Duration::from_secs(2);
/// A task that is queued for so long is explained, and looked at again as often.
const EXPLAIN_AFTER: Duration = Duration::from_secs(2);

/// What to print of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ResultOutput {
    /// The whole result.
    Json,
    /// A lone value: the field `value`, of a command what it wrote, else the only field.
    Value,
}

/// A task that is waited for.
pub(crate) struct Waiting<'a> {
    /// The master's client.
    pub client: &'a Client,
    /// The task.
    pub id: TaskId,
    /// The flags by which another command finds the same master, for hints.
    pub flags: &'a str,
}

impl Waiting<'_> {
    /// Waits for the end and prints the result. The first Ctrl-C leaves the task running, the second cancels
    /// it.
    ///
    /// # Errors
    /// How it ended otherwise than with a result.
    pub(crate) async fn print_end(
        &self,
        wait_for: Option<Duration>,
        what: ResultOutput,
        shutdown: &Shutdown,
    ) -> Result<(), Failure> {
        shutdown.signals_that_do_not_kill(2);
        let ended = async {
            match wait_for {
                Some(wait) => self.client.task(self.id, Some(wait)).await,
                None => self.client.wait_for_end(self.id).await,
            }
        };
        let task = tokio::select! {
            task = ended => task?,
            never = self.explain_while_queued() => match never {},
            () = shutdown.signalled(1) => return self.leave_or_cancel(shutdown).await,
        };
        match wait_for {
            Some(wait) if !task.state.is_terminal() => Err(self.over(wait)),
            _ => print_ended(&task, what),
        }
    }

    /// That the wait is over before the task's end.
    pub(crate) fn over(&self, wait: Duration) -> Failure {
        let Self { id, flags, .. } = self;
        Failure::WaitOver(format!(
            "task {id} has not ended within {}; it goes on: evenkeel task wait{flags} {id}",
            show_duration(wait)
        ))
    }

    /// Says why the task is still queued, once for each reason.
    async fn explain_while_queued(&self) -> Infallible {
        let mut said = String::new();
        loop {
            tokio::time::sleep(EXPLAIN_AFTER).await;
            // Only a convenience: what goes wrong here is seen by the wait itself.
            match self.client.task(self.id, None).await {
                Ok(task) if task.state == TaskState::Queued => {}
                _ => continue,
            }
            if let Ok(explanation) = self.client.explain(self.id).await
                && explanation.reason != said
                && explanation.reason != "ended"
            {
                output::say(format_args!("task {} is queued: {}", self.id, explanation.message));
                said = explanation.reason;
            }
        }
    }

    async fn leave_or_cancel(&self, shutdown: &Shutdown) -> Result<(), Failure> {
        let Self { client, id, flags } = self;
        output::say(format_args!(
            "task {id} goes on; press Ctrl-C again now to cancel it, or later: evenkeel task cancel{flags} {id}"
        ));
        if tokio::time::timeout(SECOND_SIGNAL_WITHIN, shutdown.signalled(2)).await.is_ok() {
            client.cancel(*id).await?;
            return Err(Failure::Interrupted(format!("task {id} is cancelled")));
        }
        Err(Failure::Interrupted(String::new()))
    }
}

/// Prints the result of an ended task, and why it failed if it did.
///
/// # Errors
/// [`Failure::TaskEnded`] if it did not succeed.
pub(crate) fn print_ended(task: &Task, what: ResultOutput) -> Result<(), Failure> {
    if let Some(result) = &task.result {
        match what {
            ResultOutput::Json => output::data(result.get())?,
            ResultOutput::Value => print_value(result)?,
        }
    }
    if task.state == TaskState::Succeeded {
        return Ok(());
    }
    let why = task
        .error
        .as_ref()
        .map_or_else(String::new, |error| format!(" ({}): {}", error.code.as_str(), error.message));
    let verb = if task.state == TaskState::Cancelled { "was" } else { "has" };
    output::say(format_args!("evenkeel: task {} {verb} {}{why}", task.id, task.state.as_str()));
    Err(Failure::TaskEnded)
}

/// A text that ends its last line itself gets no second line end.
fn print_value(result: &RawValue) -> Result<(), Failure> {
    match lone_value(result) {
        Some(text) if text.ends_with('\n') => output::raw(text.as_bytes()),
        Some(text) => output::data(text),
        None => {
            output::say("the result has no lone value, so this is all of it");
            output::data(result.get())
        }
    }
}

/// The lone value of a result; `None` if it is an object without one.
fn lone_value(result: &RawValue) -> Option<String> {
    // Values of fields are kept as their text, so that no number loses a digit.
    let fields: Option<std::collections::BTreeMap<String, &RawValue>> =
        serde_json::from_str(result.get()).ok();
    let text = match &fields {
        None => result.get(),
        Some(fields) => {
            let named = fields.get("value").or_else(|| fields.get("stdout"));
            named.or_else(|| fields.values().next().filter(|_| fields.len() == 1))?.get()
        }
    };
    Some(serde_json::from_str::<String>(text).unwrap_or_else(|_| text.to_owned()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_lone_value_is_shown_without_its_quotes() {
        let value =
            |text: &str| lone_value(&RawValue::from_string(text.to_owned()).unwrap()).unwrap_or_default();
        assert_eq!(value(r#"{"value":"102334155"}"#), "102334155");
        assert_eq!(value(r#"{"exit_code":0,"stdout":"hello\n","truncated":false}"#), "hello\n");
        assert_eq!(value(r#"{"cpu_ms":200}"#), "200");
        assert_eq!(value(r#"{"a":1,"b":2}"#), "", "there is no lone value");
        assert_eq!(value("12345678901234567890.50"), "12345678901234567890.50");
        assert_eq!(value("{}"), "", "nor here");
    }
}
