//! Reads a whole text file, but never more than its bound.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The text of the file at `path`. Opening a FIFO waits for its writer, as usual.
///
/// # Errors
/// Why it cannot be read, as the rest of a sentence that begins with the file: "does not exist". Never any content.
pub(super) fn read(path: &Path, bytes_max: usize) -> Result<String, String> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => "does not exist".to_owned(),
        io::ErrorKind::IsADirectory => "is a folder".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let file = File::open(path).map_err(failed)?;
    let one_too_many = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    // Allocated at once: a buffer with a secret must not leave copies behind when it grows.
    let room = file.metadata().map_or(0, |about| about.len().min(one_too_many)).saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(room).unwrap_or(0));
    file.take(one_too_many).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > bytes_max {
        return Err(format!("is larger than {} KiB", bytes_max.div_euclid(1024)));
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let line = sound.iter().filter(|byte| **byte == b'\n').count().saturating_add(1);
        format!("is not UTF-8: the first byte at fault is on line {line}")
    })
}
