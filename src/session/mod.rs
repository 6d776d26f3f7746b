//! Sessions: who is attached to which, whether a turn of it runs, what must be said again to have it as it was, where each went
//! last, and how a parked link learns that a client comes back for one.
//!
//! What is known of servers is in `fleet`; nothing here does I/O.

mod inbox;
mod journal;
mod attached;
mod directory;
mod handovers;
mod revivals;
mod pins;
mod turn;
mod usage;

pub use directory::{Adopted, Attachment, Claim, Directory, PlacementGuard};
pub use handovers::{Handover, Handovers, Keeper, Registered};
pub use inbox::{Inbox, Subscriber};
pub use journal::{Journal, Journals, Kept, Opening, Unmovable};
pub use pins::Pins;
pub use revivals::{RevivalTurn, Revivals};
pub use turn::{Activity, Asks, Sign};
pub use usage::Usage;
