//! Heads of frames, against a reader that has all bytes at once and takes its time.

use sessile::wire::Head;
use sessile::wire::frame::{BODY_BYTES_MAX, HEAD_BYTES_MAX};

/// What the rules say of a whole head at the front, if there is one: the bytes of head and body.
fn expected(bytes: &[u8]) -> Option<(usize, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(bytes.get(..end - 4)?).ok()?;
    let mut length = None;
    for line in text.split("\r\n") {
        let (name, value) = line.split_once(':')?;
        let sound = !name.is_empty() && name.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
        if !sound || line.contains('\n') {
            return None;
        }
        if name.eq_ignore_ascii_case("content-length") {
            let digits = value.trim_matches([' ', '\t', '\r', '\u{c}']);
            let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            let number = digits.parse::<usize>().ok().filter(|_| is_number && digits.len() <= 12)?;
            if length.replace(number).is_some() || number == 0 || number > BODY_BYTES_MAX {
                return None;
            }
        }
    }
    (end <= HEAD_BYTES_MAX).then_some((end, length?))
}

pub fn run(bytes: &[u8]) {
    let whole = Head::read(bytes);
    if let Ok(Some(head)) = whole {
        let plain = std::str::from_utf8(&bytes[..head.head_bytes]).is_ok();
        let rules = expected(bytes);
        assert!(!plain || rules == Some((head.head_bytes, head.body_bytes)), "{head:?}, not {rules:?}");
    } else if let Some(head) = expected(bytes) {
        panic!("{whole:?}, and it is a head: {head:?}");
    }
    // What has been decided of the first bytes holds, whatever follows.
    let mut decided = None;
    for end in 0..=bytes.len().min(300) {
        let now = Head::read(&bytes[..end]);
        if let Some(before) = &decided {
            assert_eq!(&now, before, "at {end}");
        } else if now != Ok(None) {
            decided = Some(now);
        }
    }
    if let Some(decided) = decided {
        assert_eq!(whole, decided);
    }
}
