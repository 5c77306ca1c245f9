//! How long tests wait.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks at something that tells nobody when it changes.
const PERIOD: Duration = Duration::from_millis(20);

/// A limit of so many seconds in the lab, times `TESSERA_TEST_TIMEOUT_SCALE` where that is set.
pub fn within(seconds: u32) -> Duration {
    let scale = std::env::var("TESSERA_TEST_TIMEOUT_SCALE").ok();
    Duration::from_secs(seconds.into()).mul_f64(factor(scale.as_deref()))
}

/// Whether tests are to take their time: `cargo xtask test --long` says so in `TESSERA_LONG`.
pub fn is_long() -> bool {
    std::env::var_os("TESSERA_LONG").is_some_and(|value| !value.is_empty())
}

/// A scale that is no number, or would make waits end at once, is none.
fn factor(scale: Option<&str>) -> f64 {
    let factor = scale.and_then(|scale| scale.parse().ok()).unwrap_or(1.0);
    if (0.01..=1000.0).contains(&factor) { factor } else { 1.0 }
}

/// Looks again and again until `look` finds something.
///
/// # Errors
/// `look` failed, or found nothing for so long; the text says `what` was wanted.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sensible_number_scales() {
        for (scale, expected) in
            [(None, 1.0), (Some("2.5"), 2.5), (Some("x"), 1.0), (Some("0"), 1.0)]
        {
            assert_eq!(factor(scale), expected, "{scale:?}");
        }
    }

    #[test]
    fn a_wait_ends_with_what_was_found_or_says_what_was_not() {
        let mut looks = 0;
        let found = until("three looks", within(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        });
        assert_eq!(found.unwrap(), 3);
        let error = until::<()>("rain", Duration::ZERO, || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for rain");
    }
}
