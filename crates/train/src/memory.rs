//! What this process really uses, from the operating system.

/// Bytes of memory that no file backs: anonymous pages and shared memory of our own making.
/// `None` where the system does not say.
pub fn anonymous_bytes() -> Option<u64> {
    use std::io::Read;
    let mut text = [0_u8; 4096];
    let mut file = std::fs::File::open("/proc/self/status").ok()?;
    let len = file.read(&mut text).ok()?;
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((field("RssAnon:")? + field("RssShmem:")?) * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_shows() {
        let before = super::anonymous_bytes().unwrap();
        // Far more than what tests beside this one may free meanwhile.
        let block = std::hint::black_box(vec![1_u8; 128 << 20]);
        let after = super::anonymous_bytes().unwrap();
        assert!(after >= before + (64 << 20), "{before} {after} {}", block.len());
    }
}
