//! Summaries of samples.

use serde::Serialize;

/// A distribution in a few numbers. Percentiles lie between the two nearest samples, in proportion: the usual default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Number of samples.
    pub count: usize,
    /// Smallest.
    pub min: f64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Half of the samples are below it.
    pub median: f64,
    /// 95% of the samples are below it.
    pub p95: f64,
    /// 99% of the samples are below it.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

impl Summary {
    /// `None` where there is nothing to sum up. Samples that are not numbers are left out.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| !sample.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        Some(Self {
            count: sorted.len(),
            min,
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            median: percentile(&sorted, 50.0)?,
            p95: percentile(&sorted, 95.0)?,
            p99: percentile(&sorted, 99.0)?,
            max,
        })
    }
}

/// The median alone.
pub fn median(samples: &[f64]) -> Option<f64> {
    Summary::of(samples).map(|summary| summary.median)
}

/// A percentile of samples in ascending order.
fn percentile(sorted: &[f64], percent: f64) -> Option<f64> {
    let at = (sorted.len().checked_sub(1)? as f64) * percent / 100.0;
    let (below, above) = (sorted.get(at.floor() as usize)?, sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Expected values are those of `numpy.percentile` 2.3 with its default method, and of `numpy.mean`.
    #[test]
    fn percentiles_are_those_of_numpy() {
        for (samples, expected) in [
            (&[7.0][..], [7.0, 7.0, 7.0, 7.0]),
            (&[2.0, 1.0], [1.5, 1.5, 1.95, 1.99]),
            (&[15.0, 20.0, 35.0, 40.0, 50.0], [32.0, 35.0, 48.0, 49.6]),
            (&[0.031, 0.029, 0.5, 0.03, 0.033, 0.028, 0.032, 0.9], [0.197_875, 0.0315, 0.76, 0.872]),
        ] {
            let summary = Summary::of(samples).unwrap();
            for (got, expected) in [summary.mean, summary.median, summary.p95, summary.p99].iter().zip(expected) {
                assert!((got - expected).abs() < 1e-12, "{samples:?}: {got} instead of {expected}");
            }
        }
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&hundred).unwrap();
        assert_eq!((summary.count, summary.min, summary.max), (100, 1.0, 100.0));
        for (got, expected) in [(summary.median, 50.5), (summary.p95, 95.05), (summary.p99, 99.01)] {
            assert!((got - expected).abs() < 1e-12, "{got} instead of {expected}");
        }
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::NAN, 3.0]).unwrap().max, 3.0);
    }

    proptest! {
        #[test]
        fn figures_are_ordered(samples in prop::collection::vec(-1e6..1e6f64, 1..200)) {
            let s = Summary::of(&samples).unwrap();
            let slack = 1e-9;
            prop_assert!(s.min <= s.median && s.median <= s.p95 + slack && s.p95 <= s.p99 + slack && s.p99 <= s.max + slack);
            prop_assert!(s.min <= s.mean + slack && s.mean <= s.max + slack);
        }
    }
}
