//! Memory that this process really uses, as the operating system counts it.

/// Bytes of memory that no file backs: anonymous pages and shared memory, of which each process
/// that uses a page counts its share. `None` where the system does not say.
pub(crate) fn anonymous_bytes() -> Option<u64> {
    use std::io::Read;
    let mut text = [0_u8; 4096];
    let mut file = std::fs::File::open("/proc/self/smaps_rollup").ok()?;
    let mut len = 0;
    loop {
        match file.read(&mut text[len..]).ok()? {
            0 => break,
            more => len += more,
        }
    }
    let text = std::str::from_utf8(&text[..len]).ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_ascii_whitespace().nth(1)?.parse().ok()
    };
    Some((field("Pss_Anon:")? + field("Pss_Shmem:")?) * 1024)
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
