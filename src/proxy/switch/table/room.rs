//! How many requests of one client may be in flight, and how many of them to one backend.

use super::Table;
use crate::proxy::switch::in_flight::At;
use crate::runtime::account::Owns;
use crate::wire::{Id, SessionId};

/// What the requests in flight of one client may take, in both directions, with what is remembered of those that are
/// over and with the client's state; a further request is refused.
const BOOKS_BYTES_MAX: usize = 176 * 1024;
/// What of the requests of one client is in flight in any case, however much others hold.
const FLIGHTS_BYTES_FREE: usize = 8 * 1024;
/// What a request with a short id owns.
const SMALL_OWNS: usize = 16;

impl Table {
    /// Whether one more request may be in flight, beside `others` that count with them.
    pub(in crate::proxy::switch) fn may_depart(
        &self,
        id: &Id,
        session: Option<&SessionId>,
        others: usize,
    ) -> bool {
        self.has_room(self.flights.bytes_with(self.owned(id, session)), others)
    }

    /// Whether an upstream may have one more of them: the backend of a few must not take the room of all.
    pub(in crate::proxy::switch) fn may_depart_to(
        &self,
        at: At,
        id: &Id,
        session: Option<&SessionId>,
        others: usize,
    ) -> bool {
        self.has_room(self.flights.bytes_with_share(at, self.owned(id, session)), others)
    }

    /// The same for a small request, whatever its id.
    pub(in crate::proxy::switch) fn has_share(&self, at: At, others: usize) -> bool {
        self.has_room(self.flights.bytes_with_share(at, SMALL_OWNS), others)
    }

    /// What the request would own.
    fn owned(&self, id: &Id, session: Option<&SessionId>) -> usize {
        id.owns().saturating_add(session.map_or(0, |session| self.sessions.more_named(session)))
    }

    /// Whether the requests in flight may take so many bytes.
    fn has_room(&self, flights: usize, others: usize) -> bool {
        let more = flights.saturating_sub(self.flights.bytes());
        self.books().saturating_add(others).saturating_add(more) <= BOOKS_BYTES_MAX
            && (flights <= FLIGHTS_BYTES_FREE || self.account.has_room(more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::switch::in_flight::InFlight;
    use crate::runtime::account::Budget;
    use crate::wire::Scan;
    use crate::wire::method::{Effect, Timed};

    fn id(number: usize, bytes: usize) -> Id {
        let body = format!(r#"{{"jsonrpc":"2.0","id":"{number:0>bytes$}","method":"m"}}"#);
        Scan::whole(body.as_bytes()).unwrap().id.unwrap()
    }

    #[test]
    fn however_many_backends_answer_nothing_there_is_room_for_requests_to_another() {
        for (silent, id_bytes) in [1, 2, 3, 8, 30].into_iter().flat_map(|n| [6, 36, 60, 250].map(|m| (n, m)))
        {
            let budget = Budget::for_tests(0, None);
            let mut table = Table::new(&budget.account());
            let mut number = 0;
            let mut asks = |table: &mut Table, at: At| {
                let id = id(number, id_bytes);
                number += 1;
                let may = table.may_depart(&id, None, 0) && table.may_depart_to(at, &id, None, 0);
                if may {
                    table.depart(id, InFlight::new(at, None, Effect::None, false, Timed::Other));
                }
                may
            };
            let mut taken = vec![0; silent];
            // All at once, and then one after the other.
            while (0..silent).fold(false, |any, at| {
                let may = asks(&mut table, at as At);
                taken[at] += usize::from(may);
                any || may
            }) {}
            let most = *taken.iter().max().unwrap();
            assert!(most > 256 / (silent + 1), "{taken:?} of {id_bytes} bytes");
            let mut other = 0;
            while asks(&mut table, 1000) {
                other += 1;
            }
            assert!(other >= most / 4, "{other} beside {taken:?} of {id_bytes} bytes");
            for flight in table.flights.extract(|_| true) {
                drop(flight);
            }
            assert!((0..silent).all(|at| asks(&mut table, at as At)), "as at first");
        }
    }
}
