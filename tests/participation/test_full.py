from fedsim.participation.full import Full


def test_everyone_always(population):
    schedule = Full().bind(population(4))
    assert schedule.select(1).tolist() == schedule.select(9).tolist() == [0, 1, 2, 3]
    assert schedule.rates().tolist() == [1, 1, 1, 1]
