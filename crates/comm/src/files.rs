//! How many files this process may have open; every connection is one.

/// Raises the limit to `needed`, if it is lower and may be raised. What this process starts
/// inherits it.
///
/// # Errors
/// The limit that stays.
pub fn allow(needed: u64) -> Result<(), u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a whole `rlimit`, which the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        // Where the system does not tell, it will when files are opened.
        return Ok(());
    }
    if limit.rlim_cur >= needed {
        return Ok(());
    }
    // Beyond the hard limit only for who has the right to.
    let raised = libc::rlimit { rlim_cur: needed, rlim_max: limit.rlim_max.max(needed) };
    // SAFETY: the pointer is to a whole `rlimit`, which the call reads.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(()),
        _ => Err(limit.rlim_max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_had_is_had_and_what_not_is_told() {
        assert_eq!(allow(64), Ok(()));
        // More than any kernel allows (`fs.nr_open`).
        assert!(allow(u64::MAX / 2).is_err_and(|limit| limit > 0));
    }
}
