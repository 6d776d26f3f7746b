//! Requests of servers that the client has not answered. Their ids overlap between backends and are rewritten to numbers unique on
//! this connection.

use super::in_flight::At;
use crate::runtime::account::{Account, HeldMap, Owns};
use crate::wire::Id;

/// What server requests that the client has not answered may take: beyond, the oldest is given up.
const ASKED_BYTES_MAX: usize = 96 * 1024;
/// What they may take in any case, however much the client or others hold.
const ASKED_BYTES_FREE: usize = 8 * 1024;

/// A server request that waits for the client's answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub at: At,
    pub id: Id,
}

impl Owns for Asked {
    fn owns(&self) -> usize {
        self.id.owns()
    }
}

/// The requests, by the numbers that the client knows them by.
#[derive(Debug)]
pub(super) struct ServerRequests {
    by_number: HeldMap<u64, Asked>,
    /// No number below is among them.
    first: u64,
    last: u64,
}

impl ServerRequests {
    /// None yet.
    pub(super) fn new(account: &Account) -> Self {
        Self { by_number: HeldMap::new(account), first: 1, last: 0 }
    }

    /// Bytes that they take.
    pub(super) fn bytes(&self) -> usize {
        self.by_number.bytes()
    }

    /// A new number for a server request.
    pub(super) fn ask(&mut self, at: At, id: Id) -> u64 {
        self.last = self.last.saturating_add(1);
        self.by_number.insert(self.last, Asked { at, id });
        self.last
    }

    /// Whether there is room for one more.
    pub(super) fn has_room(&self, id: &Id) -> bool {
        let bytes = self.by_number.bytes_with(1, id.owns());
        let more = bytes.saturating_sub(self.bytes());
        bytes <= ASKED_BYTES_FREE || bytes <= ASKED_BYTES_MAX && self.by_number.account().has_room(more)
    }

    /// Gives up the oldest.
    pub(super) fn give_up_oldest(&mut self) -> Option<Asked> {
        while self.first <= self.last {
            let oldest = self.by_number.remove(&self.first);
            self.first = self.first.saturating_add(1);
            if oldest.is_some() {
                return oldest;
            }
        }
        None
    }

    /// Takes the one that the client's answer with this id is for.
    pub(super) fn answer(&mut self, id: &Id) -> Option<Asked> {
        self.by_number.remove(&number(id)?)
    }

    /// Who made that request.
    pub(super) fn asker(&self, id: &Id) -> Option<At> {
        self.by_number.get(&number(id)?).map(|asked| asked.at)
    }

    /// Takes those of an upstream.
    pub(super) fn take_of(&mut self, at: At) -> Vec<Id> {
        self.by_number.extract(|_, asked| asked.at == at).into_iter().map(|(_, asked)| asked.id).collect()
    }

    /// The number that stands for a server request.
    pub(super) fn number_of(&self, at: At, id: &Id) -> Option<u64> {
        self.by_number.iter().find(|(_, asked)| asked.at == at && asked.id == *id).map(|(number, _)| *number)
    }
}

/// The number that stands for a server request, in a client's answer.
fn number(id: &Id) -> Option<u64> {
    str::from_utf8(id.raw()).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;

    fn id(number: usize) -> Id {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"{number:q>250}","method":"m"}}"#);
        Scan::whole(body.as_bytes()).unwrap().id.unwrap()
    }

    #[test]
    fn a_server_that_asks_on_takes_what_room_there_is_and_no_more() {
        for (bytes_max, most) in [(1 << 20, ASKED_BYTES_MAX), (20_000, 20_000), (0, ASKED_BYTES_FREE)] {
            let gauge = prometheus::IntGauge::new("g", "g").unwrap();
            let account = Budget::new(gauge, 0, Some(bytes_max)).account();
            let mut asked = ServerRequests::new(&account);
            let (mut given_up, mut last) = (0, 0);
            for number in 0..1000 {
                while !asked.has_room(&id(number)) {
                    assert_eq!(asked.give_up_oldest().unwrap().id, id(given_up), "in their order");
                    given_up += 1;
                }
                last = asked.ask(1, id(number));
                // A table whose places are used up by what has gone may double.
                assert!(asked.bytes() <= most / 2 * 3, "{} bytes", asked.bytes());
            }
            assert!(given_up > 500 && given_up < 995, "{given_up}");
            assert_eq!(asked.number_of(1, &id(999)), Some(last));
        }
    }
}
