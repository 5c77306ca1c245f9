//! An answer that comes later.
//!
//! The monitor's thread serves everybody and must not wait for the guest. It keeps a [`Promise`]
//! and answers with its [`Pending`], for which the connection's own thread waits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::reply::{ApiError, ErrorKind, Reply};
use super::request::{Control, Request};

/// How often a waiting thread looks whether its client is still there.
const LOOK: Duration = Duration::from_millis(100);

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

    /// Waits for the answer, for as long as the client is there. Called by connection threads.
    pub(crate) fn wait(
        self,
        control: &dyn Control,
        has_gone: &dyn Fn() -> bool,
    ) -> Result<Reply, ApiError> {
        let end = Instant::now() + self.patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.answer.recv_timeout(left.min(LOOK)) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) if left > LOOK => {
                    if has_gone() {
                        return Err(ApiError::new(ErrorKind::WrongState, "the client went away"));
                    }
                }
                // Patience is over; or the machine has gone, and with it perhaps what was to go.
                Err(_) => {
                    let late = control.call(self.otherwise);
                    // What was waited for may have come while asking; then it counts.
                    return self.answer.try_recv().unwrap_or(late);
                }
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
        assert_eq!(message(pending.wait(&Late(None.into()), &|| false)), "Done");
        thread.join().unwrap();
    }

    #[test]
    fn patience_ends_with_another_question() {
        let (promise, pending) = Pending::new(SHORT, Request::Partitions);
        assert_eq!(message(pending.wait(&Late(None.into()), &|| false)), "still in use");
        assert!(!promise.is_awaited());
        promise.keep(Ok(Reply::Done));
    }

    #[test]
    fn answer_that_comes_at_the_last_moment_counts() {
        let (promise, pending) = Pending::new(SHORT, Request::Partitions);
        assert_eq!(message(pending.wait(&Late(Some(promise).into()), &|| false)), "Done");
    }

    /// It was told as a conflict: but what goes with its machine may be what was to go.
    #[test]
    fn broken_promise_has_another_question_asked_at_once() {
        let (promise, pending) = Pending::new(LONG, Request::Partitions);
        drop(promise);
        assert_eq!(message(pending.wait(&Late(None.into()), &|| false)), "still in use");
    }

    /// All connections could be kept by clients that had hung up.
    #[test]
    fn nobody_waits_for_a_client_that_has_gone() {
        let (promise, pending) = Pending::new(LONG, Request::Partitions);
        let start = Instant::now();
        assert_eq!(message(pending.wait(&Late(None.into()), &|| true)), "the client went away");
        assert!(start.elapsed() < LONG / 2 && !promise.is_awaited());
    }
}
