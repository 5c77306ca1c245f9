//! An answer that comes later.
//!
//! The monitor's thread serves everybody and must not wait for the guest. It keeps a [`Promise`]
//! and answers with its [`Pending`], for which the connection's own thread waits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::reply::{ApiError, Reply};
use super::request::{Control, Request};

/// Where an answer will come from, and what to do when it does not.
#[derive(Debug)]
pub struct Pending {
    answer: Receiver<Result<Reply, ApiError>>,
    patience: Duration,
    /// Asked when that is over, or nobody can answer any more.
    otherwise: Request,
    /// Tells the promise that somebody waits.
    _waiting: Arc<()>,
}

/// The duty to answer. Any thread may keep it; dropping it tells the client to ask otherwise.
#[derive(Debug)]
pub struct Promise {
    answer: SyncSender<Result<Reply, ApiError>>,
    waiting: Weak<()>,
}

impl Pending {
    /// An answer that is waited for during `patience`. When it has not come then, or the promise was
    /// dropped, `otherwise` is asked for the answer; it must be one that is answered at once.
    pub fn new(patience: Duration, otherwise: Request) -> (Promise, Self) {
        let (sender, answer) = sync_channel(1);
        let waiting = Arc::new(());
        let promise = Promise { answer: sender, waiting: Arc::downgrade(&waiting) };
        (promise, Self { answer, patience, otherwise, _waiting: waiting })
    }

    /// Waits for the answer. Called by connection threads.
    pub(crate) fn wait(self, control: &dyn Control) -> Result<Reply, ApiError> {
        match self.answer.recv_timeout(self.patience) {
            Ok(answer) => answer,
            // The machine has gone, and with it perhaps what the client wanted gone.
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {
                let late = control.call(self.otherwise);
                // What was waited for may have come while asking; then it counts.
                self.answer.try_recv().unwrap_or(late)
            }
        }
    }
}

impl Promise {
    /// Gives the answer. Never waits; harmless when nobody is left to hear it.
    pub fn keep(self, answer: Result<Reply, ApiError>) {
        // The client may have run out of patience.
        let _ = self.answer.try_send(answer);
    }

    /// Whether anybody is still waiting. A promise to nobody need not be kept, nor stored.
    pub fn is_awaited(&self) -> bool {
        self.waiting.strong_count() != 0
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::api::ErrorKind;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(5);

    /// Answers what it is asked at the end of patience; may keep a promise at that moment.
    struct Late(std::sync::Mutex<Option<Promise>>);

    impl Control for Late {
        fn call(&self, request: Request) -> Result<Reply, ApiError> {
            assert_eq!(request, Request::Partitions);
            if let Some(promise) = self.0.lock().unwrap().take() {
                promise.keep(Ok(Reply::Done));
            }
            Err(ApiError::new(ErrorKind::WrongState, "still in use"))
        }
    }

    fn message(answer: Result<Reply, ApiError>) -> String {
        answer.map_or_else(|error| error.to_string(), |reply| format!("{reply:?}"))
    }

    #[test]
    fn answer_arrives_from_another_thread() {
        let (promise, pending) = Pending::new(LONG, Request::Partitions);
        assert!(promise.is_awaited());
        let thread = thread::spawn(move || promise.keep(Ok(Reply::Done)));
        assert_eq!(message(pending.wait(&Late(None.into()))), "Done");
        thread.join().unwrap();
    }

    #[test]
    fn patience_ends_with_another_question() {
        let (promise, pending) = Pending::new(SHORT, Request::Partitions);
        assert_eq!(message(pending.wait(&Late(None.into()))), "still in use");
        assert!(!promise.is_awaited());
        promise.keep(Ok(Reply::Done));
    }

    #[test]
    fn answer_that_comes_at_the_last_moment_counts() {
        let (promise, pending) = Pending::new(SHORT, Request::Partitions);
        assert_eq!(message(pending.wait(&Late(Some(promise).into()))), "Done");
    }

    /// It was told as a conflict: but what goes with its machine may be what was to go.
    #[test]
    fn broken_promise_has_another_question_asked_at_once() {
        let (promise, pending) = Pending::new(LONG, Request::Partitions);
        drop(promise);
        assert_eq!(message(pending.wait(&Late(None.into()))), "still in use");
    }
}
