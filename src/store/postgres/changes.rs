//! Hears of changes that other processes make: LISTEN on a connection of its own.
//!
//! Nothing depends on it: who waits for a change looks from time to time as well. Behind a pooler in transaction mode
//! nothing is ever heard.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::poll_fn;
use tokio::sync::broadcast;
use tokio_postgres::AsyncMessage;

use super::address::Address;
use crate::store::{Changed, RecordKey, Table};

/// The channel. Its payload is the number of a table and the key, in hexadecimal.
const LISTEN: &str = "LISTEN obo_changed";

/// How many changes may wait to be heard: who is slower looks for itself.
const QUEUE: usize = 1024;

/// How long to wait before connecting again, at first and at most.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whoever hears.
pub(super) struct Changes {
    sender: broadcast::Sender<Changed>,
}

impl Changes {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { sender: broadcast::Sender::new(QUEUE) })
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Changed> {
        self.sender.subscribe()
    }

    /// Listens until nobody is there to hear.
    pub(super) async fn listen(this: Weak<Self>, address: Address) {
        let mut pause = SHORTEST_PAUSE;
        loop {
            match Self::listen_once(&this, &address).await {
                Ok(()) => pause = SHORTEST_PAUSE,
                Err(error) => tracing::debug!(%error, "store.not_listening"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            if this.strong_count() == 0 {
                return;
            }
        }
    }

    async fn listen_once(this: &Weak<Self>, address: &Address) -> Result<(), tokio_postgres::Error> {
        let (client, mut connection) = address.config.connect(address.tls.clone()).await?;
        let mut messages = poll_fn(move |context| connection.poll_message(context)).boxed();
        let mut begun = std::pin::pin!(client.batch_execute(LISTEN));
        let mut listening = false;
        loop {
            tokio::select! {
                done = &mut begun, if !listening => {
                    done?;
                    listening = true;
                }
                message = messages.next() => match message {
                    None => return Ok(()),
                    Some(message) => {
                        let Some(changes) = this.upgrade() else { return Ok(()) };
                        if let AsyncMessage::Notification(heard) = message?
                            && let Some(changed) = parse(heard.payload())
                        {
                            let _ = changes.sender.send(changed);
                        }
                    }
                }
            }
        }
    }
}

/// What is sent about a record.
pub(super) fn payload(table: Table, key: &RecordKey) -> String {
    let mut text = format!("{} ", table as u8);
    for byte in key {
        use std::fmt::Write as _;
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn parse(payload: &str) -> Option<Changed> {
    let (table, hex) = payload.split_once(' ')?;
    let table: u8 = table.parse().ok()?;
    let table = Table::ALL.into_iter().find(|known| *known as u8 == table)?;
    let hex = hex.as_bytes();
    let mut key = [0; 32];
    if hex.len() != 2 * key.len() {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(hex.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(Changed { table, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_understood_and_nothing_else() {
        let key = std::array::from_fn(|byte| byte as u8 * 7);
        let sent = payload(Table::Flow, &key);
        assert_eq!(parse(&sent), Some(Changed { table: Table::Flow, key }));
        for other in ["", "4", "4 ", "99 00", "5 zz", &sent[..sent.len() - 1], &format!("{sent}0"), "4 é"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
