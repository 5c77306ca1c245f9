//! Repeated measurements of one thing, and what is said about them.

use serde::Serialize;
use thiserror::Error;

/// Why numbers are no samples.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// There is none: no median either.
    #[error("no samples")]
    Empty,
    /// Infinite or not a number: no order.
    #[error("a sample is not a finite number")]
    NotFinite,
}

/// One or more finite numbers of one unit, in the order they were measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "Record")]
pub struct Samples {
    measured: Vec<f64>,
    sorted: Vec<f64>,
}

/// Samples in a result file: the summary for readers, the values for whoever computes on.
#[derive(Serialize)]
struct Record {
    n: usize,
    min: f64,
    p25: f64,
    median: f64,
    p75: f64,
    max: f64,
    values: Vec<f64>,
}

impl Samples {
    /// Takes the values as measured.
    ///
    /// # Errors
    /// There is no value, or one is not finite.
    pub fn new(measured: Vec<f64>) -> Result<Self, Error> {
        if measured.is_empty() {
            return Err(Error::Empty);
        }
        if measured.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite);
        }
        let mut sorted = measured.clone();
        sorted.sort_by(f64::total_cmp);
        Ok(Self { measured, sorted })
    }

    /// How many.
    pub fn n(&self) -> usize {
        self.sorted.len()
    }

    /// The values in the order they were measured.
    pub fn values(&self) -> &[f64] {
        &self.measured
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.sorted[0]
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.sorted[self.sorted.len() - 1]
    }

    /// The one in the middle, or the mean of the two.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// A quarter of the samples is below.
    pub fn p25(&self) -> f64 {
        self.quantile(0.25)
    }

    /// A quarter of the samples is above.
    pub fn p75(&self) -> f64 {
        self.quantile(0.75)
    }

    /// The value below which the part `q` of the samples lies, interpolated between neighbours
    /// (Hyndman and Fan's type 7, the default of R and NumPy). `q` is taken into 0..=1.
    pub fn quantile(&self, q: f64) -> f64 {
        let position = q.clamp(0.0, 1.0) * (self.sorted.len() - 1) as f64;
        let (low, high) = (position.floor(), position.ceil());
        let (below, above) = (self.sorted[low as usize], self.sorted[high as usize]);
        below + (above - below) * (position - low)
    }

    /// Between which values the quantile `q` of all that could have been measured lies, 19 times in
    /// 20: how many samples are below it is binomial, whatever their distribution is (Hahn and
    /// Meeker, Statistical Intervals, 5.2). An end is 0 or infinite where samples are too few.
    pub fn interval(&self, q: f64) -> (f64, f64) {
        const MISSED: f64 = 0.025;
        let n = self.n();
        let mut ln_term = n as f64 * (1.0 - q).ln();
        let (mut at_most, mut low, mut high) = (0.0, 0.0, f64::INFINITY);
        for below in 0..n {
            at_most += ln_term.exp();
            if at_most <= MISSED {
                low = self.sorted[below];
            }
            if at_most >= 1.0 - MISSED {
                high = self.sorted[below];
                break;
            }
            ln_term += ((n - below) as f64 / (below + 1) as f64).ln() + (q / (1.0 - q)).ln();
        }
        (low, high)
    }
}

impl From<Samples> for Record {
    fn from(samples: Samples) -> Self {
        Self {
            n: samples.n(),
            min: samples.min(),
            p25: samples.p25(),
            median: samples.median(),
            p75: samples.p75(),
            max: samples.max(),
            values: samples.measured,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(values: &[f64]) -> Samples {
        Samples::new(values.to_vec()).unwrap()
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        let five = samples(&[5.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((five.min(), five.p25(), five.median()), (1.0, 2.0, 3.0));
        assert_eq!((five.p75(), five.max(), five.n()), (4.0, 5.0, 5));
        let four = samples(&[1.0, 2.0, 3.0, 10.0]);
        assert_eq!((four.p25(), four.median(), four.p75()), (1.75, 2.5, 4.75));
        assert_eq!(samples(&[7.0]).quantile(0.9), 7.0);
        assert_eq!(four.quantile(2.0), 10.0);
    }

    #[test]
    fn intervals_are_those_of_the_tables_and_open_where_samples_are_few() {
        let up_to = |n: u32| samples(&(1..=n).map(f64::from).collect::<Vec<_>>());
        assert_eq!(up_to(20).interval(0.5), (6.0, 15.0));
        assert_eq!(up_to(5).interval(0.5), (0.0, f64::INFINITY));
        assert_eq!(up_to(368).interval(0.99).1, 368.0);
        assert_eq!(up_to(367).interval(0.99).1, f64::INFINITY);
        let (low, high) = up_to(30_000).interval(0.99);
        assert!((29_660.0..29_672.0).contains(&low) && (29_730.0..29_740.0).contains(&high));
    }

    #[test]
    fn nothing_and_nonsense_are_refused() {
        assert_eq!(Samples::new(vec![]), Err(Error::Empty));
        assert_eq!(Samples::new(vec![1.0, f64::NAN]), Err(Error::NotFinite));
        assert_eq!(Samples::new(vec![f64::INFINITY]), Err(Error::NotFinite));
    }

    #[test]
    fn a_result_file_has_the_summary_and_the_order() {
        let text = serde_json::to_string(&samples(&[3.0, 1.0, 2.0])).unwrap();
        assert!(text.contains("\"median\":2.0") && text.contains("[3.0,1.0,2.0]"), "{text}");
    }
}
