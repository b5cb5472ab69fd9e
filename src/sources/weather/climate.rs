//! The climate of a location: means and ranges by latitude and reference locations.

/// A yearly cycle: the mean over the year, and the difference of January, °F.
#[derive(Clone, Copy, Debug)]
pub(super) struct YearlyCycle {
    mean: f64,
    january: f64,
}

impl YearlyCycle {
    fn new(january: f64, july: f64) -> YearlyCycle {
        YearlyCycle { mean: (january + july) / 2.0, january: (january - july) / 2.0 }
    }

    /// `january` is 1 in mid January and -1 in mid July.
    pub(super) fn at(&self, january: f64) -> f64 {
        self.mean + self.january * january
    }
}

/// The climate of a location.
#[derive(Clone, Copy, Debug)]
pub(super) struct Climate {
    pub(super) temperature: YearlyCycle,
    pub(super) dew_point: YearlyCycle,
    /// From the coldest to the warmest hour of an average day, °F.
    pub(super) day_range: f64,
}

impl Climate {
    /// Interpolates between the locations of [`REFERENCE_CLIMATES`]: their differences from
    /// [`by_latitude`], weighted by the inverse fourth power of the distance. Elevation is unknown,
    /// so a city in the mountains gets its effect only from such a location nearby.
    pub(super) fn at(latitude: f64, longitude: f64) -> Climate {
        let point = unit_sphere_point(latitude, longitude);
        let mut weights = 0.0;
        let mut sums = [0.0; 5];
        for &(name_latitude, name_longitude, values) in REFERENCE_CLIMATES {
            let named_point = unit_sphere_point(name_latitude, name_longitude);
            let distance = point.iter().zip(named_point).map(|(a, b)| (a - b) * (a - b)).sum::<f64>();
            // 0.0005 is (140 km)², in squares of the globe's radius: below it, distance matters
            // less.
            let near = distance + 0.0005;
            let weight = 1.0 / (near * near);
            weights += weight;
            for ((sum, value), usual) in sums.iter_mut().zip(values).zip(by_latitude(name_latitude)) {
                *sum += weight * (value - usual);
            }
        }
        let mut values = by_latitude(latitude);
        for (value, sum) in values.iter_mut().zip(sums) {
            *value += sum / weights;
        }
        let [january, july, day_range, january_dew_point, july_dew_point] = values;
        Climate {
            temperature: YearlyCycle::new(january, july),
            // The mean dew point is limited to a little less than the mean temperature: air holds
            // no more.
            dew_point: YearlyCycle::new(january_dew_point.min(january - 1.0), july_dew_point.min(july - 1.0)),
            day_range: day_range.max(4.0),
        }
    }
}

fn unit_sphere_point(latitude: f64, longitude: f64) -> [f64; 3] {
    let (north, east) = (latitude.to_radians(), longitude.to_radians());
    let out = libm::cos(north);
    [out * libm::cos(east), out * libm::sin(east), libm::sin(north)]
}

/// The five values of [`REFERENCE_CLIMATES`] as a function of latitude.
fn by_latitude(latitude: f64) -> [f64; 5] {
    let north = libm::sin(latitude.to_radians());
    let mean = 80.0 - 62.0 * north * north;
    let (january, july) = (mean - 28.0 * north, mean + 28.0 * north);
    [january, july, 17.0, january - 12.0, july - 12.0]
}

/// Mean temperature of January and July, mean daily range, mean dew point of January and July, all
/// °F, of locations spread over the globe. Round figures of general knowledge, not taken from a
/// data set: they may be off by several degrees, and are only for generated weather.
#[rustfmt::skip]
const REFERENCE_CLIMATES: &[(f64, f64, [f64; 5])] = &[
    // North America
    (33.4, -112.1, [57.0,  95.5, 23.0,  33.0,  54.0]), // Phoenix
    (36.2, -115.1, [49.0,  93.0, 21.0,  24.0,  38.0]), // Las Vegas
    (34.1, -118.2, [58.0,  73.0, 17.0,  42.0,  59.0]), // Los Angeles
    (37.8, -122.4, [52.0,  59.0, 12.0,  44.0,  52.0]), // San Francisco
    (38.6, -121.5, [47.0,  76.0, 26.0,  41.0,  54.0]), // Sacramento
    (47.6, -122.3, [42.0,  67.0, 15.0,  36.0,  54.0]), // Seattle
    (39.7, -105.0, [32.0,  75.0, 28.0,  14.0,  48.0]), // Denver
    (40.8, -111.9, [31.0,  81.0, 24.0,  22.0,  44.0]), // Salt Lake City
    (32.8,  -96.8, [47.0,  86.5, 20.0,  33.0,  67.0]), // Dallas
    (29.8,  -95.4, [54.0,  85.5, 18.0,  44.0,  74.0]), // Houston
    (25.8,  -80.2, [68.5,  84.0, 13.0,  58.0,  75.0]), // Miami
    (33.7,  -84.4, [44.0,  80.5, 19.0,  32.0,  69.0]), // Atlanta
    (38.6,  -90.2, [32.0,  80.5, 19.0,  22.0,  68.0]), // St. Louis
    (41.9,  -87.6, [25.0,  75.0, 17.0,  17.0,  63.0]), // Chicago
    (45.0,  -93.3, [16.0,  74.5, 19.0,   7.0,  61.0]), // Minneapolis
    (40.7,  -74.0, [33.5,  77.5, 15.0,  19.0,  65.0]), // New York
    (42.4,  -71.1, [30.0,  74.5, 16.0,  17.0,  62.0]), // Boston
    (45.5,  -73.6, [14.0,  71.0, 18.0,   6.0,  60.0]), // Montreal
    (49.9,  -97.1, [ 2.0,  67.5, 21.0,  -5.0,  56.0]), // Winnipeg
    (53.5, -113.5, [12.0,  63.5, 21.0,   5.0,  51.0]), // Edmonton
    (61.2, -149.9, [17.0,  59.5, 14.0,  11.0,  49.0]), // Anchorage
    (64.8, -147.7, [-8.0,  63.0, 21.0, -14.0,  49.0]), // Fairbanks
    (62.5, -114.4, [-14.,  62.5, 16.0, -20.0,  48.0]), // Yellowknife
    (63.7,  -68.5, [-16.,  47.0, 13.0, -22.0,  40.0]), // Iqaluit
    (64.2,  -51.7, [18.0,  45.0,  9.0,  10.0,  39.0]), // Nuuk
    (25.7, -100.3, [58.0,  83.5, 21.0,  43.0,  65.0]), // Monterrey
    (29.1, -111.0, [63.0,  91.0, 26.0,  40.0,  65.0]), // Hermosillo
    (19.4,  -99.1, [58.0,  64.0, 23.0,  36.0,  52.0]), // Mexico City
    (21.0,  -89.6, [74.0,  82.5, 21.0,  64.0,  73.0]), // Merida
    (14.6,  -90.5, [64.5,  67.5, 18.0,  53.0,  61.0]), // Guatemala City
    ( 9.0,  -79.5, [81.0,  81.5, 14.0,  71.0,  75.0]), // Panama
    (23.1,  -82.4, [72.0,  82.5, 13.0,  62.0,  74.0]), // Havana
    (18.5,  -69.9, [77.0,  82.0, 15.0,  67.0,  74.0]), // Santo Domingo
    // South America
    (10.5,  -66.9, [69.0,  72.0, 17.0,  61.0,  65.0]), // Caracas
    ( 4.6,  -74.1, [56.5,  55.5, 18.0,  48.0,  48.0]), // Bogota
    (10.9,  -74.8, [80.5,  83.5, 14.0,  72.0,  76.0]), // Barranquilla
    (-0.2,  -78.5, [58.5,  58.5, 18.0,  49.0,  45.0]), // Quito
    (-2.2,  -79.9, [81.0,  76.5, 14.0,  73.0,  68.0]), // Guayaquil
    (-12.0, -77.0, [74.0,  63.5, 10.0,  66.0,  58.0]), // Lima
    (-16.5, -68.1, [50.0,  44.5, 23.0,  41.0,  25.0]), // La Paz
    (-13.5, -72.0, [54.5,  48.5, 26.0,  44.0,  31.0]), // Cusco
    (-17.8, -63.2, [80.5,  69.5, 16.0,  71.0,  58.0]), // Santa Cruz
    (-3.1,  -60.0, [79.5,  80.5, 14.0,  74.0,  73.0]), // Manaus
    (-3.7,  -38.5, [81.5,  79.0, 12.0,  74.0,  70.0]), // Fortaleza
    (-15.8, -47.9, [72.0,  66.5, 19.0,  64.0,  50.0]), // Brasilia
    (-22.9, -43.2, [80.0,  71.0, 14.0,  71.0,  62.0]), // Rio de Janeiro
    (-23.5, -46.6, [73.0,  61.5, 15.0,  65.0,  53.0]), // Sao Paulo
    (-30.0, -51.2, [77.0,  58.0, 17.0,  67.0,  51.0]), // Porto Alegre
    (-25.3, -57.6, [82.0,  65.5, 18.0,  71.0,  56.0]), // Asuncion
    (-34.6, -58.4, [77.0,  52.0, 16.0,  63.0,  45.0]), // Buenos Aires
    (-32.9, -68.8, [77.0,  46.5, 24.0,  54.0,  31.0]), // Mendoza
    (-33.4, -70.7, [70.0,  47.0, 27.0,  49.0,  39.0]), // Santiago
    (-23.6, -70.4, [69.0,  57.5, 11.0,  60.0,  50.0]), // Antofagasta
    (-53.2, -70.9, [51.0,  34.5, 12.0,  40.0,  30.0]), // Punta Arenas
    // Europe
    (64.1,  -21.9, [32.5,  53.0,  9.0,  26.0,  46.0]), // Reykjavik
    (51.5,   -0.1, [42.0,  66.0, 14.0,  37.0,  53.0]), // London
    (55.9,   -3.2, [40.0,  59.5, 12.0,  35.0,  51.0]), // Edinburgh
    (53.3,   -6.3, [42.0,  60.5, 12.0,  38.0,  52.0]), // Dublin
    (48.9,    2.3, [41.0,  69.0, 15.0,  36.0,  54.0]), // Paris
    (40.4,   -3.7, [43.5,  78.5, 20.0,  34.0,  47.0]), // Madrid
    (38.7,   -9.1, [53.5,  73.5, 15.0,  46.0,  58.0]), // Lisbon
    (37.4,   -6.0, [52.0,  82.5, 23.0,  43.0,  57.0]), // Seville
    (41.4,    2.2, [50.0,  75.5, 13.0,  40.0,  64.0]), // Barcelona
    (45.5,    9.2, [37.0,  77.0, 17.0,  32.0,  62.0]), // Milan
    (41.9,   12.5, [46.0,  77.5, 19.0,  39.0,  61.0]), // Rome
    (38.0,   23.7, [50.0,  84.0, 15.0,  41.0,  58.0]), // Athens
    (52.5,   13.4, [33.5,  67.5, 16.0,  29.0,  53.0]), // Berlin
    (50.1,   14.4, [31.0,  66.0, 17.0,  27.0,  52.0]), // Prague
    (47.5,   19.0, [33.0,  72.5, 18.0,  27.0,  55.0]), // Budapest
    (52.2,   21.0, [29.0,  67.5, 17.0,  25.0,  54.0]), // Warsaw
    (44.4,   26.1, [30.0,  74.0, 21.0,  25.0,  57.0]), // Bucharest
    (59.3,   18.1, [30.0,  65.5, 14.0,  25.0,  52.0]), // Stockholm
    (60.2,   24.9, [26.0,  64.5, 13.0,  22.0,  53.0]), // Helsinki
    (60.4,    5.3, [36.0,  59.0, 10.0,  31.0,  51.0]), // Bergen
    (69.6,   18.9, [25.5,  53.5,  9.0,  19.0,  46.0]), // Tromso
    (50.5,   30.5, [27.0,  70.5, 17.0,  23.0,  56.0]), // Kyiv
    (55.8,   37.6, [18.0,  67.0, 16.0,  14.0,  55.0]), // Moscow
    (59.9,   30.3, [21.5,  66.0, 13.0,  18.0,  54.0]), // Saint Petersburg
    (64.5,   40.5, [10.0,  61.0, 14.0,   6.0,  51.0]), // Arkhangelsk
    (55.8,   49.1, [13.0,  68.5, 16.0,   9.0,  55.0]), // Kazan
    (48.7,   44.5, [21.0,  76.0, 18.0,  17.0,  53.0]), // Volgograd
    // Northern and central Asia
    (56.8,   60.6, [ 9.0,  66.5, 17.0,   4.0,  53.0]), // Yekaterinburg
    (67.5,   64.0, [-4.0,  56.0, 13.0, -10.0,  46.0]), // Vorkuta
    (55.0,   82.9, [ 2.0,  67.0, 18.0,  -3.0,  55.0]), // Novosibirsk
    (69.3,   88.2, [-17.,  57.0, 12.0, -23.0,  46.0]), // Norilsk
    (52.3,  104.3, [ 0.0,  65.0, 20.0,  -5.0,  54.0]), // Irkutsk
    (62.0,  129.7, [-38.,  67.0, 15.0, -43.0,  50.0]), // Yakutsk
    (59.6,  150.8, [ 2.0,  54.0, 10.0,  -8.0,  48.0]), // Magadan
    (53.0,  158.7, [20.0,  55.0, 11.0,  12.0,  49.0]), // Petropavlovsk
    (43.1,  131.9, [10.0,  64.5, 13.0,  -3.0,  61.0]), // Vladivostok
    (51.2,   71.4, [ 6.0,  69.5, 19.0,   1.0,  51.0]), // Astana
    (43.2,   76.9, [24.0,  75.5, 20.0,  17.0,  48.0]), // Almaty
    (41.3,   69.2, [36.0,  82.0, 24.0,  28.0,  48.0]), // Tashkent
    (38.0,   58.4, [37.0,  88.0, 24.0,  28.0,  45.0]), // Ashgabat
    (47.9,  106.9, [-7.0,  65.0, 22.0, -14.0,  49.0]), // Ulaanbaatar
    // Western Asia
    (41.0,   29.0, [43.0,  76.0, 13.0,  36.0,  63.0]), // Istanbul
    (39.9,   32.9, [33.0,  75.5, 22.0,  26.0,  46.0]), // Ankara
    (41.7,   44.8, [36.0,  77.0, 18.0,  27.0,  56.0]), // Tbilisi
    (33.3,   44.4, [50.0,  96.0, 27.0,  38.0,  43.0]), // Baghdad
    (29.4,   48.0, [56.0, 100.0, 24.0,  42.0,  50.0]), // Kuwait
    (24.7,   46.7, [58.0,  96.5, 24.0,  37.0,  34.0]), // Riyadh
    (21.5,   39.2, [74.5,  91.5, 19.0,  60.0,  69.0]), // Jeddah
    (25.2,   55.3, [67.0,  96.0, 17.0,  54.0,  72.0]), // Dubai
    (15.4,   44.2, [60.0,  74.0, 27.0,  34.0,  43.0]), // Sanaa
    (35.7,   51.4, [40.0,  87.0, 19.0,  22.0,  40.0]), // Tehran
    (27.2,   56.3, [64.5,  94.0, 15.0,  52.0,  77.0]), // Bandar Abbas
    (32.1,   34.8, [56.0,  80.0, 14.0,  46.0,  70.0]), // Tel Aviv
    (34.5,   69.2, [30.0,  78.0, 24.0,  20.0,  42.0]), // Kabul
    // Southern and eastern Asia
    (24.9,   67.0, [65.0,  87.0, 17.0,  47.0,  77.0]), // Karachi
    (31.5,   74.3, [55.0,  89.0, 20.0,  44.0,  76.0]), // Lahore
    (28.6,   77.2, [57.0,  88.0, 19.0,  47.0,  77.0]), // Delhi
    (19.1,   72.9, [76.0,  82.5, 14.0,  60.0,  77.0]), // Mumbai
    (12.97,  77.6, [70.5,  74.5, 18.0,  57.0,  66.0]), // Bengaluru
    (13.1,   80.3, [77.0,  88.0, 14.0,  68.0,  74.0]), // Chennai
    (22.6,   88.4, [67.0,  85.0, 16.0,  54.0,  79.0]), // Kolkata
    (6.9,    79.9, [80.5,  82.0, 12.0,  72.0,  76.0]), // Colombo
    (27.7,   85.3, [51.0,  76.0, 22.0,  42.0,  69.0]), // Kathmandu
    (29.7,   91.1, [31.0,  61.0, 25.0,   8.0,  45.0]), // Lhasa
    (36.1,  103.8, [24.0,  73.0, 22.0,  12.0,  54.0]), // Lanzhou
    (43.8,   87.6, [10.0,  77.0, 17.0,   4.0,  45.0]), // Urumqi
    (39.9,  116.4, [27.0,  80.5, 18.0,   8.0,  69.0]), // Beijing
    (45.8,  126.5, [-1.0,  74.0, 19.0,  -8.0,  64.0]), // Harbin
    (31.2,  121.5, [41.0,  84.0, 13.0,  32.0,  75.0]), // Shanghai
    (30.6,  114.3, [40.0,  84.5, 14.0,  32.0,  75.0]), // Wuhan
    (30.7,  104.1, [43.0,  78.5, 13.0,  36.0,  72.0]), // Chengdu
    (25.0,  102.7, [49.0,  68.5, 19.0,  37.0,  61.0]), // Kunming
    (23.1,  113.3, [57.0,  84.0, 13.0,  47.0,  76.0]), // Guangzhou
    (25.0,  121.6, [61.5,  86.0, 12.0,  54.0,  76.0]), // Taipei
    (37.6,  127.0, [28.0,  78.0, 15.0,  15.0,  69.0]), // Seoul
    (35.7,  139.7, [41.5,  79.5, 13.0,  25.0,  70.0]), // Tokyo
    (43.1,  141.4, [26.0,  70.0, 13.0,  17.0,  62.0]), // Sapporo
    (21.0,  105.8, [62.0,  85.0, 12.0,  55.0,  77.0]), // Hanoi
    (10.8,  106.7, [80.0,  82.5, 15.0,  69.0,  75.0]), // Ho Chi Minh City
    (13.8,  100.5, [80.5,  84.5, 15.0,  67.0,  75.0]), // Bangkok
    (16.8,   96.2, [77.5,  81.0, 20.0,  62.0,  76.0]), // Yangon
    ( 1.3,  103.9, [80.5,  82.5, 12.0,  74.0,  76.0]), // Singapore
    (-6.2,  106.8, [80.0,  82.0, 14.0,  75.0,  74.0]), // Jakarta
    (-6.9,  107.6, [74.0,  73.0, 16.0,  67.0,  65.0]), // Bandung
    (-5.1,  119.4, [79.5,  79.5, 14.0,  75.0,  70.0]), // Makassar
    (14.6,  121.0, [79.0,  83.0, 13.0,  68.0,  76.0]), // Manila
    ( 7.1,  125.6, [80.5,  82.0, 15.0,  73.0,  75.0]), // Davao
    // Africa
    (33.6,   -7.6, [54.5,  73.0, 14.0,  48.0,  64.0]), // Casablanca
    (31.6,   -8.0, [54.0,  84.0, 25.0,  41.0,  52.0]), // Marrakesh
    (36.8,    3.1, [52.0,  78.0, 18.0,  45.0,  65.0]), // Algiers
    (27.9,   -0.3, [55.0,  99.0, 27.0,  32.0,  38.0]), // Adrar
    (32.9,   13.2, [56.0,  82.0, 18.0,  45.0,  65.0]), // Tripoli
    (30.0,   31.2, [57.0,  83.0, 19.0,  44.0,  63.0]), // Cairo
    (24.1,   32.9, [61.0,  94.0, 26.0,  33.0,  40.0]), // Aswan
    (15.6,   32.5, [74.0,  90.0, 25.0,  37.0,  61.0]), // Khartoum
    (14.7,  -17.4, [71.0,  81.5, 11.0,  58.0,  75.0]), // Dakar
    (12.6,   -8.0, [77.5,  80.5, 23.0,  42.0,  73.0]), // Bamako
    (13.5,    2.1, [76.0,  85.0, 25.0,  35.0,  71.0]), // Niamey
    (12.0,    8.5, [71.0,  79.5, 25.0,  36.0,  70.0]), // Kano
    (12.1,   15.0, [75.0,  82.5, 26.0,  36.0,  71.0]), // N'Djamena
    ( 6.5,    3.4, [81.5,  78.0, 13.0,  73.0,  73.0]), // Lagos
    ( 5.6,   -0.2, [81.5,  77.5, 11.0,  73.0,  72.0]), // Accra
    ( 4.1,    9.7, [81.0,  77.0, 12.0,  74.0,  74.0]), // Douala
    (-4.3,   15.3, [79.0,  73.0, 15.0,  72.0,  64.0]), // Kinshasa
    (-8.8,   13.2, [79.5,  69.5, 11.0,  72.0,  62.0]), // Luanda
    ( 9.0,   38.7, [61.0,  60.5, 24.0,  46.0,  52.0]), // Addis Ababa
    ( 2.0,   45.3, [80.5,  78.0, 11.0,  74.0,  72.0]), // Mogadishu
    (-1.3,   36.8, [67.5,  61.5, 22.0,  55.0,  51.0]), // Nairobi
    ( 0.3,   32.6, [73.0,  69.5, 18.0,  62.0,  62.0]), // Kampala
    (-6.8,   39.3, [82.5,  75.0, 14.0,  74.0,  65.0]), // Dar es Salaam
    (-11.7,  27.5, [69.5,  61.5, 24.0,  62.0,  37.0]), // Lubumbashi
    (-17.8,  31.0, [69.0,  57.5, 22.0,  60.0,  39.0]), // Harare
    (-22.6,  17.1, [74.5,  57.0, 24.0,  50.0,  26.0]), // Windhoek
    (-26.2,  28.0, [67.5,  50.5, 19.0,  56.0,  29.0]), // Johannesburg
    (-29.9,  31.0, [76.0,  62.5, 13.0,  68.0,  50.0]), // Durban
    (-33.9,  18.4, [70.5,  54.5, 17.0,  60.0,  47.0]), // Cape Town
    (-18.9,  47.5, [69.5,  59.0, 18.0,  62.0,  50.0]), // Antananarivo
    (-20.2,  57.5, [80.0,  70.0, 12.0,  70.0,  61.0]), // Port Louis
    // Oceania
    (-12.5, 130.8, [83.0,  77.0, 15.0,  76.0,  58.0]), // Darwin
    (-23.7, 133.9, [84.0,  53.5, 28.0,  46.0,  33.0]), // Alice Springs
    (-31.95,115.9, [76.0,  55.5, 20.0,  56.0,  46.0]), // Perth
    (-34.9, 138.6, [74.0,  53.0, 18.0,  51.0,  45.0]), // Adelaide
    (-37.8, 145.0, [69.5,  50.5, 18.0,  53.0,  42.0]), // Melbourne
    (-33.9, 151.2, [74.0,  55.5, 15.0,  62.0,  42.0]), // Sydney
    (-27.5, 153.0, [78.0,  59.5, 17.0,  67.0,  47.0]), // Brisbane
    (-42.9, 147.3, [63.5,  47.5, 16.0,  48.0,  39.0]), // Hobart
    (-36.8, 174.8, [68.5,  52.0, 12.0,  60.0,  46.0]), // Auckland
    (-43.5, 172.6, [63.0,  42.5, 18.0,  52.0,  37.0]), // Christchurch
    ( -9.4, 147.2, [82.0,  79.0, 13.0,  75.0,  72.0]), // Port Moresby
    (-18.1, 178.4, [80.5,  74.5, 11.0,  74.0,  68.0]), // Suva
    ( 21.3,-157.9, [73.5,  81.5, 13.0,  63.0,  68.0]), // Honolulu
    ( 13.5, 144.8, [79.5,  81.5, 11.0,  72.0,  76.0]), // Guam
];
