//! The way of a sample from the beat to the uplink: bounded, and the newest wins.
//!
//! In: samples from an OS thread, which is never made to wait. Out: samples in order to one
//! async task. A full box drops its oldest sample and counts the drop.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_channel::{TryRecvError, TrySendError};
use tokio::sync::Notify;

/// Both ends of a box for `capacity` items.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "a mailbox without room would drop everything");
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    let shared = Arc::new(Shared { dropped: AtomicU64::new(0), arrived: Notify::new() });
    let oldest = receiver.clone();
    (Sender { items: sender, oldest, shared: shared.clone() }, Receiver { items: receiver, shared })
}

#[derive(Debug)]
struct Shared {
    dropped: AtomicU64,
    arrived: Notify,
}

/// The end that puts in. There is one, and when it goes the receiver ends.
#[derive(Debug)]
pub struct Sender<T> {
    items: crossbeam_channel::Sender<T>,
    oldest: crossbeam_channel::Receiver<T>,
    shared: Arc<Shared>,
}

impl<T> Sender<T> {
    /// Never waits.
    pub fn send(&self, item: T) {
        let mut item = item;
        loop {
            match self.items.try_send(item) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => {
                    item = back;
                    if self.oldest.try_recv().is_ok() {
                        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // Cannot be: `oldest` keeps the channel open.
                Err(TrySendError::Disconnected(_)) => break,
            }
        }
        self.shared.arrived.notify_one();
    }

    /// Items dropped since the box was made.
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The receiver looks again, and finds that nobody is left: see `recv`.
        let (closed, _) = crossbeam_channel::bounded(1);
        self.items = closed;
        self.shared.arrived.notify_one();
    }
}

/// The end that takes out. Copies of it share what is in the box.
#[derive(Debug)]
pub struct Receiver<T> {
    items: crossbeam_channel::Receiver<T>,
    shared: Arc<Shared>,
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { items: self.items.clone(), shared: self.shared.clone() }
    }
}

impl<T> Receiver<T> {
    /// The oldest item, when there is one; `None` once the sender is gone and the box is empty. May be
    /// dropped while it waits without losing an item.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            match self.items.try_recv() {
                Ok(item) => return Some(item),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => self.shared.arrived.notified().await,
            }
        }
    }

    /// The oldest item if there is one now.
    pub fn try_recv(&mut self) -> Option<T> {
        self.items.try_recv().ok()
    }

    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_box_drops_its_oldest_and_says_so() {
        let (sender, mut receiver) = bounded(3);
        for n in 0..5 {
            sender.send(n);
        }
        assert_eq!((sender.dropped(), receiver.dropped()), (2, 2));
        drop(sender);
        let mut got = Vec::new();
        while let Some(n) = receiver.recv().await {
            got.push(n);
        }
        assert_eq!(got, [2, 3, 4]);
    }

    #[tokio::test]
    async fn a_waiting_receiver_is_woken_from_an_os_thread() {
        let (sender, mut receiver) = bounded(1);
        let (ready, go) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            go.recv().unwrap();
            sender.send(7);
        });
        let mut waiting = Box::pin(receiver.recv());
        assert!(
            std::future::poll_fn(|cx| {
                std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())
            })
            .await
        );
        ready.send(()).unwrap();
        assert_eq!(waiting.await, Some(7));
        thread.join().unwrap();
        assert_eq!(receiver.recv().await, None);
    }
}
